"""Reads Hugging Face folders, whose tensors are memory-mapped, and writes such folders."""
