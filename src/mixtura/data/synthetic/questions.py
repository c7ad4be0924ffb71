"""Random numbers, batches and counts of right answers, for questions with one right answer.

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
"""the target at a position without an answer; torch's cross_entropy ignores it"""


class Purpose(IntEnum):
    """The purpose of random numbers; each purpose has a sequence of its own."""

    TABLE = 0
    ORDER = 1
    TRAIN = 2
    HELDOUT = 3


def random_numbers(seed: int, purpose: Purpose, number: int, count: int) -> Ints:
    """Random integers in 0..2**63-1, the same in every version of NumPy, as Philox's raw bits are.

    `number` selects one of many independent sequences of a purpose, such as one for each step.
    """
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
    """The number of right answers, and of all answers that were due."""

    right: int
    due: int


def answer_counts(logits_BSV: Tensor, batch: Batch) -> dict[int, AnswerCounts]:
    """The counts for each label in `domains_BS`: the number of hops, or 0 for facts.

    A model's answer is the token of the largest logit.
    """
    due_BS = batch.targets_BS != NO_ANSWER
    right_BS = logits_BSV.argmax(-1) == batch.targets_BS
    found: dict[int, AnswerCounts] = {}
    for label in batch.domains_BS[due_BS].unique().tolist():
        these_BS = due_BS & (batch.domains_BS == label)
        found[label] = AnswerCounts(int(right_BS[these_BS].sum()), int(these_BS.sum()))
    return found
