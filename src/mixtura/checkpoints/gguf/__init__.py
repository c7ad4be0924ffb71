"""Reads and writes GGUF, llama.cpp's file format, which holds weights, config and tokenizer.

The PyPI package `gguf` is imported only in this folder.
"""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.checkpoints.gguf.source import GGUFSource
    from mixtura.checkpoints.gguf.tokenizer_reader import gguf_tokenizer

__all__ = ["GGUFSource", "gguf_tokenizer"]

_HOMES = {
    "GGUFSource": "mixtura.checkpoints.gguf.source",
    "gguf_tokenizer": "mixtura.checkpoints.gguf.tokenizer_reader",
}

# Type checkers must not see `__getattr__`, because then they would accept any misspelt name.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
