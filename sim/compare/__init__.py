"""Compares settings: many simulations over the same images and seeds, and which of them differ beyond chance."""
