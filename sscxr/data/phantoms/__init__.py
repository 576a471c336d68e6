"""Drawn chest X-rays in the manner of several hospitals."""
