"""llama.cpp's file format, read: a Source of dense llama-like models, and their tokenizers.

`gguf` is imported in this folder alone.
"""

from mixtura.interop.gguf.source import GGUFSource
from mixtura.interop.gguf.vocabulary import gguf_tokenizer

__all__ = ["GGUFSource", "gguf_tokenizer"]
