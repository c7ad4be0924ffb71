"""Weights packed in groups and tiles, and products with them."""
