"""Computes where each character of a text begins in the text's UTF-8 bytes."""

import numpy as np
from numpy.typing import NDArray


def byte_offsets(text: str) -> NDArray[np.int64]:
    """Return the index of each character's first byte in the text's UTF-8 bytes.

    One more value, the number of all bytes, follows, so the result has len(text) + 1 values.
    """
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
