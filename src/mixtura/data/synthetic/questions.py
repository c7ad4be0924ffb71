"""Questions with one right answer: their random numbers, their batches, their counts.

B sequences, S positions, V vocabulary.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixtura.data.batches import Batch

Ints = NDArray[np.int64]

NO_ANSWER = -100


class Purpose(IntEnum):
    """The use of random numbers; no two purposes share any."""

    TABLE = 0
    ORDER = 1
    TRAIN = 2
    HELDOUT = 3


def random_numbers(seed: int, purpose: Purpose, number: int, count: int) -> Ints:
    """Random integers below 2**63. NumPy keeps Philox's raw bits the same in every version."""
    bits = np.random.Philox(np.random.SeedSequence([seed, purpose, number]))
    return (bits.random_raw(count) >> np.uint64(1)).astype(np.int64)


def as_batch(tokens_BS: Ints, targets_BS: Ints, domains_BS: Ints) -> Batch:
    return Batch(
        tokens_BS=torch.from_numpy(tokens_BS),
        targets_BS=torch.from_numpy(targets_BS),
        domains_BS=torch.from_numpy(domains_BS.astype(np.uint8)),
        text_bytes=tokens_BS.size,
    )


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """Of `due` answers, the number that were right."""

    right: int
    due: int


def answer_counts(logits_BSV: Tensor, batch: Batch) -> dict[int, AnswerCounts]:
    """By the label in `domains_BS` (hops; 0 for facts); an answer is the largest logit's token."""
    due_BS = batch.targets_BS != NO_ANSWER
    right_BS = logits_BSV.argmax(-1) == batch.targets_BS
    found: dict[int, AnswerCounts] = {}
    for label in batch.domains_BS[due_BS].unique().tolist():
        these_BS = due_BS & (batch.domains_BS == label)
        found[label] = AnswerCounts(int(right_BS[these_BS].sum()), int(these_BS.sum()))
    return found
