"""Reads batches from a token file. B sequences of S tokens; W windows in an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixtura.data.token_file import TokenFile
from mixtura.errors import DataError
from mixtura.ranks import ONE_RANK, Ranks


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B sequences of S tokens; the target of a token is the next token of the text."""

    tokens_BS: Tensor  # int64
    targets_BS: Tensor  # int64
    domains_BS: Tensor  # uint8, the domain of each token in `tokens_BS`
    text_bytes: int  # UTF-8 bytes of the targets' text; the end of a document has 0 bytes


class Batches:
    """Reads batches of windows from a token file, in a random order set by the seed and the epoch.

    In each epoch the file is a ring, in which the first token follows the last. The ring is cut,
    from a random start, into W windows of `length` tokens, each of which is used once. So each
    token is a target exactly once, except for at most length - 1 tokens, which are left out. A
    batch may have the last windows of one epoch and the first windows of the next.

    With several ranks, each rank reads its part of every batch. All parts together are the batch
    that a single process would read.
    """

    def __init__(
        self, token_file: TokenFile, batch: int, length: int, seed: int, ranks: Ranks = ONE_RANK
    ) -> None:
        """Raise DataError if the file has fewer than `length` + 1 tokens, if `batch` is not a
        multiple of the number of ranks, or if a value is out of bounds.
        """
        _check(token_file, batch=batch, length=length)
        if batch % ranks.count:
            raise DataError(
                f"batch={batch} must be a multiple of {ranks.count}, the number of ranks that "
                "share it"
            )
        if seed < 0:
            raise DataError(f"seed={seed} must be at least 0")
        self._file = token_file
        self._batch = batch
        self._length = length
        self._seed = seed
        self._ranks = ranks
        self._windows = len(token_file) // length
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def at(self, step: int) -> Batch:
        """Return this rank's part of the batch of `step`, where steps count from 0.

        The result does not depend on earlier calls.
        """
        part = self._batch // self._ranks.count
        first = step * self._batch + self._ranks.index * part
        epoch_B, place_B = np.divmod(np.arange(first, first + part), self._windows)
        starts_B = np.empty(part, np.int64)
        for epoch in np.unique(epoch_B):
            inside = epoch_B == epoch
            starts_B[inside] = self._starts(int(epoch))[place_B[inside]]
        return _batch_at(self._file, starts_B, self._length)

    def epochs_of(self, steps: int) -> float:
        """Return the number of passes over the file in `steps` steps."""
        return steps * self._batch / self._windows

    def _starts(self, epoch: int) -> NDArray[np.int64]:
        """Return the index of each window's first token, in the order of use in the epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            # Philox's raw bits are the same in every version of NumPy; shuffles may change.
            bits = np.random.Philox(np.random.SeedSequence([self._seed, epoch]))
            offset = int(bits.random_raw()) % len(self._file)
            order_W = np.argsort(bits.random_raw(self._windows), kind="stable")
            self._epoch = epoch, offset + order_W * self._length
        return self._epoch[1]


def heldout_batches(
    token_file: TokenFile, batch: int, length: int, limit_tokens: int | None = None
) -> Iterator[Batch]:
    """Yield batches of a token file's windows in order; the last batch may be smaller.

    `limit_tokens` bounds the number of targets: only limit_tokens // length windows (at least one)
    are used, spread evenly over the file. Raises DataError if the file has fewer than
    `length` + 1 tokens, or if `batch` or `length` is below 1.
    """
    _check(token_file, batch=batch, length=length)
    windows = (len(token_file) - 1) // length
    taken = windows if limit_tokens is None else min(windows, max(1, limit_tokens // length))
    starts = np.arange(taken) * windows // taken * length
    for first in range(0, taken, batch):
        yield _batch_at(token_file, starts[first : first + batch], length)


def _check(token_file: TokenFile, batch: int, length: int) -> None:
    for name, value in (("batch", batch), ("length", length)):
        if value < 1:
            raise DataError(f"{name}={value} must be at least 1")
    if len(token_file) < length + 1:
        raise DataError(
            f"the {token_file.name} text has {len(token_file)} tokens, and a window of "
            f"length={length} needs {length + 1}; give more text, or choose a smaller length"
        )


def _batch_at(token_file: TokenFile, starts_B: NDArray[np.int64], length: int) -> Batch:
    # The file is a ring: its first token follows the last.
    place_BS = (starts_B[:, None] + np.arange(length + 1)) % len(token_file)
    tokens_BS = torch.from_numpy(token_file.tokens[place_BS].astype(np.int64))
    return Batch(
        tokens_BS=tokens_BS[:, :-1].contiguous(),
        targets_BS=tokens_BS[:, 1:].contiguous(),
        domains_BS=torch.from_numpy(token_file.domains[place_BS[:, :-1]]),
        text_bytes=int(token_file.widths[place_BS[:, 1:]].sum(dtype=np.int64)),
    )
