"""The quality of an encoder: probes on frozen features, and their uncertainty."""
