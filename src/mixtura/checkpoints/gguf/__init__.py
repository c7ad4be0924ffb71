"""llama.cpp's file format, read and written: a Source of models, their tokenizers, and the reverse.

`gguf` is imported in this folder alone.
"""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.checkpoints.gguf.source import GGUFSource
    from mixtura.checkpoints.gguf.tokenizer_reading import gguf_tokenizer

__all__ = ["GGUFSource", "gguf_tokenizer"]

_HOMES = {
    "GGUFSource": "mixtura.checkpoints.gguf.source",
    "gguf_tokenizer": "mixtura.checkpoints.gguf.tokenizer_reading",
}

# Hidden from type checkers, which would take any misspelt name for one that exists.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
