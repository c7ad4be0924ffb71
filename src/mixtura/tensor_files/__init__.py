"""Safetensors files: their header, how they are written, and the digests of their tensors."""
