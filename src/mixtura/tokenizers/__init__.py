"""Tokenizers, which encode text to token ids and decode them. They do not depend on models.

`load_tokenizer(folder)` opens a tokenizer that Mixtura saved, or the tokenizer of a Hugging Face
folder: bytes, byte-level BPE or SentencePiece. A recipe describes a tokenizer by one of four
configs: `BytesConfig`, `BpeConfig` (trained on the run's text), `FileConfig` (read from a file) or
`GivenConfig` (the tokenizer of the model with whose weights training begins).
"""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer, TokenFacts
    from mixtura.tokenizers.saved_tokenizer import load_tokenizer
    from mixtura.tokenizers.subwords import BpeConfig, FileConfig, SubwordTokenizer
    from mixtura.tokenizers.text_stream import TextStream
    from mixtura.tokenizers.tokenizer import (
        BytesConfig,
        ByteTokenizer,
        Encoded,
        GivenConfig,
        Tokenizer,
    )

__all__ = [
    "BpeConfig",
    "ByteTokenizer",
    "BytesConfig",
    "CheckpointTokenizer",
    "Encoded",
    "FileConfig",
    "GivenConfig",
    "SubwordTokenizer",
    "TextStream",
    "TokenFacts",
    "Tokenizer",
    "load_tokenizer",
]

_HOMES = {
    "BpeConfig": "mixtura.tokenizers.subwords",
    "ByteTokenizer": "mixtura.tokenizers.tokenizer",
    "BytesConfig": "mixtura.tokenizers.tokenizer",
    "CheckpointTokenizer": "mixtura.tokenizers.checkpoint_tokenizer",
    "Encoded": "mixtura.tokenizers.tokenizer",
    "FileConfig": "mixtura.tokenizers.subwords",
    "GivenConfig": "mixtura.tokenizers.tokenizer",
    "SubwordTokenizer": "mixtura.tokenizers.subwords",
    "TextStream": "mixtura.tokenizers.text_stream",
    "TokenFacts": "mixtura.tokenizers.checkpoint_tokenizer",
    "Tokenizer": "mixtura.tokenizers.tokenizer",
    "load_tokenizer": "mixtura.tokenizers.saved_tokenizer",
}

# With a visible `__getattr__`, type checkers would accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
