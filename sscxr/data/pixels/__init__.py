"""One file to one grey image: decoders, greyscale, orientation, and refusals."""
