"""A released encoder: written with its card, signed, fetched, exported."""
