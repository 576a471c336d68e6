"""Drawn chest X-rays in the styles of several hospitals."""
