"""Characters and the UTF-8 bytes that they take."""

import numpy as np
from numpy.typing import NDArray


def byte_offsets(text: str) -> NDArray[np.int64]:
    """The first byte of each character in the UTF-8 text, then its length: len(text) + 1 values."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
