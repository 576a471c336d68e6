"""Self-supervised objectives, one a file; each wraps an encoder handed to it."""
