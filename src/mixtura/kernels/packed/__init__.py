"""Weights that are quantised in groups and stored in tiles, and matrix products with them."""
