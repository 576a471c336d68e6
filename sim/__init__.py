"""Virtual sites on one machine: public corpora or phantoms, cut up and federated by the apps of the hospitals."""
