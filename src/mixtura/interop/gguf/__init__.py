"""llama.cpp's file format, read and written: a Source of models, their tokenizers, and the reverse.

`gguf` is imported in this folder alone.
"""

from mixtura.interop.gguf.source import GGUFSource
from mixtura.interop.gguf.vocabulary import gguf_tokenizer

__all__ = ["GGUFSource", "gguf_tokenizer"]
