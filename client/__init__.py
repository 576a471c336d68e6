"""A hospital's side: answers the server's messages beside its own images. Never imports the server."""
