"""Turning batches into steps; knows nothing of rounds or networks."""
