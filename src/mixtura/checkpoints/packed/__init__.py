"""Packed folders: their weights, read and written."""
