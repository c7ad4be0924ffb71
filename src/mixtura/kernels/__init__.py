"""Kernels: functions from tensors to tensors.

Each fast kernel has a naive twin, a slow function of a few lines with the same result.
"""
