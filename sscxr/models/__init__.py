"""The encoder, and what stands on it."""
