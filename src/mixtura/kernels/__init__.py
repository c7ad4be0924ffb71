"""Kernels: tensors in, tensors out; each fast one has a naive twin of a few lines."""
