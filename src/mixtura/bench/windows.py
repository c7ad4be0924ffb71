"""Cuts text into windows of the same number of tokens.

W windows, S tokens of a window, N tokens of a document.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixtura.data import Document, Skipped
from mixtura.data.split import share
from mixtura.errors import DataError
from mixtura.tokenizers import Tokenizer

# The most windows from one document, so that a few long files do not make up the whole text.
_PER_DOCUMENT = 8


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows that a model reads independently; all tokens but a window's first are predicted."""

    token_WS: Tensor
    """token IDs, int64"""
    bytes_WS: Tensor
    """the number of UTF-8 bytes that each token takes in the text, int64; 0 for
    `tokenizer.begin`"""

    @property
    def predicted(self) -> int:
        """The number of predicted tokens."""
        return self.token_WS[:, 1:].numel()

    @property
    def predicted_bytes(self) -> int:
        """The UTF-8 bytes of the predicted tokens."""
        return int(self.bytes_WS[:, 1:].sum())


def windows(
    documents: Iterable[Document | Skipped], tokenizer: Tokenizer, length: int, tokens: int
) -> Windows:
    """Windows of `length` tokens, with about `tokens` tokens in all.

    Documents are sorted by a hash of their names, and each gives at most 8 windows. Tokens after a
    document's last whole window are left out. Raises DataError if no document fills a window.
    """
    readable = [document for document in documents if isinstance(document, Document)]
    shuffled = sorted(readable, key=lambda document: share(document.name, "quality"))
    begin = list(tokenizer.begin)
    # A window needs two tokens: one to predict from, and one to predict.
    own = max(2, length) - len(begin)
    found: list[tuple[list[int], list[int]]] = []
    for document in shuffled:
        encoded = tokenizer.encode_batch([document.text])[0]
        for start in range(0, min(_PER_DOCUMENT * own, len(encoded.ids_N) - own + 1), own):
            part = slice(start, start + own)
            tokens_S = [*begin, *encoded.ids_N[part].tolist()]
            bytes_S = [*(0 for _ in begin), *encoded.bytes_N[part].tolist()]
            found.append((tokens_S, bytes_S))
            if len(found) * length >= tokens:
                return _stacked(found)
    if not found:
        raise DataError(
            f"none of {len(readable)} documents has the {own} tokens of one window; give more "
            "text, or a smaller --length"
        )
    return _stacked(found)


def _stacked(found: list[tuple[list[int], list[int]]]) -> Windows:
    token_WS, bytes_WS = (np.array(column, np.int64) for column in zip(*found, strict=True))
    return Windows(torch.from_numpy(token_WS), torch.from_numpy(bytes_WS))
