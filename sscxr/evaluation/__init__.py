"""How good an encoder is: probes on frozen features, and their uncertainty."""
