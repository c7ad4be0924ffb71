"""Reads models in the formats of Hugging Face, GGUF and Mixtura, and converts between them."""
