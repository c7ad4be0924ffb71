"""Weights packed in groups and tiles, and the products that are computed from them."""
