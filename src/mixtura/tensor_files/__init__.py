"""Safetensors files: their header, a writer, and the digests of their tensors."""
