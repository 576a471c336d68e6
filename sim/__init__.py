"""Virtual sites on one machine: public corpora or phantoms, divided and federated by the hospitals' own apps."""
