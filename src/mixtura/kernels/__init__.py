"""Kernels: functions from tensors to tensors; each fast one has a naive twin of a few lines."""
