"""Training steps on batches; independent of rounds and networks."""
