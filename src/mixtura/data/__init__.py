"""Prepares text as a corpus, and reads batches of tokens from it; no part depends on a model.

`prepare` reads a source (`stdlib`, `text` or `huggingface`), leaves out unreadable documents and
duplicates, and splits the others into a train side and a held-out side. It encodes the documents,
and packs the tokens, each with a domain label, into files that are mapped into memory. `Batches`
reads windows of consecutive tokens from the train side's files:

    corpus = prepare(DataConfig(), Path("cache"))
    batches = Batches(corpus.train, batch=8, length=256, seed=0)
    batches.at(0).tokens_BS            # (8, 256), int64

`heldout_batches` reads the held-out side in order. A batch states the number of UTF-8 bytes of its
target tokens. With these bytes a loss in nats becomes bits per byte, which is comparable between
tokenizers:

    for batch in heldout_batches(corpus.heldout, batch=8, length=256):
        nats += total_cross_entropy(batch)
        text_bytes += batch.text_bytes
    bits_per_byte = nats / math.log(2) / text_bytes

The domain label of a token is an index into `corpus.domains`. The domains of `stdlib` are code,
comment, docstring, string and table.
"""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.data.batches import Batch, Batches, heldout_batches
    from mixtura.data.config import DataConfig
    from mixtura.data.documents import Document, Skipped, Source, Span
    from mixtura.data.huggingface import HuggingFaceSource
    from mixtura.data.preparation import prepare
    from mixtura.data.python_domains import python_spans
    from mixtura.data.stdlib import StdlibSource
    from mixtura.data.text import TextSource
    from mixtura.data.token_file import Corpus, TokenFile

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "DataConfig",
    "Document",
    "HuggingFaceSource",
    "Skipped",
    "Source",
    "Span",
    "StdlibSource",
    "TextSource",
    "TokenFile",
    "heldout_batches",
    "prepare",
    "python_spans",
]

_HOMES = {
    "Batch": "mixtura.data.batches",
    "Batches": "mixtura.data.batches",
    "Corpus": "mixtura.data.token_file",
    "DataConfig": "mixtura.data.config",
    "Document": "mixtura.data.documents",
    "HuggingFaceSource": "mixtura.data.huggingface",
    "Skipped": "mixtura.data.documents",
    "Source": "mixtura.data.documents",
    "Span": "mixtura.data.documents",
    "StdlibSource": "mixtura.data.stdlib",
    "TextSource": "mixtura.data.text",
    "TokenFile": "mixtura.data.token_file",
    "heldout_batches": "mixtura.data.batches",
    "prepare": "mixtura.data.preparation",
    "python_spans": "mixtura.data.python_domains",
}

# With a visible `__getattr__`, type checkers would accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
