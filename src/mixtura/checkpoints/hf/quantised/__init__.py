"""Reads the formats of quantised Hugging Face folders, one linear module at a time."""
