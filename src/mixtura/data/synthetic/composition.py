"""The task of following a mapping that the context states.

B sequences, S positions, C cycles, N symbols, Q questions of a sequence.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from mixtura.config import Config
from mixtura.data.batches import Batch
from mixtura.data.synthetic.questions import NO_ANSWER, Ints, Purpose, as_batch, random_numbers

# One in eight cycles is held out from training.
HELDOUT_EVERY = 8


class CompositionConfig(Config):
    """The number of `symbols` in a mapping, and of `questions` about it, with 1 to `hops` hops."""

    # Nine symbols have 40,320 cycles, which are few enough to list all of them.
    symbols: int = Field(default=8, ge=3, le=9)
    hops: int = Field(default=4, ge=1)
    questions: int = Field(default=16, ge=1)
    batch: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_hops(self) -> Self:
        if self.hops >= self.symbols:
            raise ValueError(
                f"hops={self.hops} must lie in 1..symbols-1={self.symbols - 1}, or a walk returns "
                "to its start; lower hops or add symbols"
            )
        return self


class Composition:
    """Questions about a mapping f that the context states: where does a walk of h hops end?

    The mapping f is one cycle through all N symbols. So no walk of h < N hops returns to its start,
    and a guess is right with probability 1 / (N - 1). A sequence begins with N tokens in random
    order, one for each pair `a -> f(a)`. Q questions follow, each with the tokens `h` and `start`;
    the target at `start` is f^h(start). One in HELDOUT_EVERY of the (N - 1)! cycles is held out, so
    answers about a held-out cycle cannot be remembered. Token numbers: N * N pairs, then symbols,
    then hop counts.
    """

    def __init__(self, config: CompositionConfig) -> None:
        self.config = config
        self.vocabulary = config.symbols**2 + config.symbols + config.hops
        self.length = config.symbols + 2 * config.questions
        next_CN = _cycles(config.symbols)
        order_C = np.argsort(
            random_numbers(config.seed, Purpose.TABLE, 0, len(next_CN)), kind="stable"
        )
        held = -(-len(next_CN) // HELDOUT_EVERY)
        self._heldout_CN, self._train_CN = np.split(next_CN[order_C], [held])

    def at(self, step: int) -> Batch:
        """The batch of `step`, counted from 0; `domains_BS` holds h at each answer, else 0."""
        return self._random_batch(self._train_CN, Purpose.TRAIN, step)

    def heldout(self, batches: int) -> Iterator[Batch]:
        """Batches of questions about mappings that are held out from training."""
        return (
            self._random_batch(self._heldout_CN, Purpose.HELDOUT, number)
            for number in range(batches)
        )

    def _random_batch(self, next_CN: Ints, purpose: Purpose, number: int) -> Batch:
        sequences, symbols = self.config.batch, self.config.symbols
        questions = self.config.questions
        raw = random_numbers(
            self.config.seed, purpose, number, sequences * (1 + symbols + 2 * questions)
        )
        which_B1, order_BN, hop_BQ, start_BQ = np.split(
            raw.reshape(sequences, -1), np.cumsum([1, symbols, questions]), axis=1
        )
        next_BN = next_CN[which_B1[:, 0] % len(next_CN)]
        order_BN = np.argsort(order_BN, kind="stable")
        hop_BQ, start_BQ = 1 + hop_BQ % self.config.hops, start_BQ % symbols
        return self._batch_of(next_BN, order_BN, hop_BQ, start_BQ)

    def _batch_of(self, next_BN: Ints, order_BN: Ints, hop_BQ: Ints, start_BQ: Ints) -> Batch:
        symbols = self.config.symbols
        first_symbol, first_hop = symbols**2, symbols**2 + symbols
        tokens_BS = np.empty((len(next_BN), self.length), np.int64)
        tokens_BS[:, :symbols] = order_BN * symbols + np.take_along_axis(next_BN, order_BN, 1)
        tokens_BS[:, symbols::2] = first_hop + hop_BQ - 1
        tokens_BS[:, symbols + 1 :: 2] = first_symbol + start_BQ
        targets_BS = np.full_like(tokens_BS, NO_ANSWER)
        targets_BS[:, symbols + 1 :: 2] = first_symbol + _walk(next_BN, start_BQ, hop_BQ)
        hops_BS = np.zeros_like(tokens_BS)
        hops_BS[:, symbols + 1 :: 2] = hop_BQ
        return as_batch(tokens_BS, targets_BS, hops_BS)


def _walk(next_BN: Ints, start_BQ: Ints, hop_BQ: Ints) -> Ints:
    """f^h(start) for each question, where f is the sequence's mapping in `next_BN`."""
    here_BQ = start_BQ
    for hop in range(int(hop_BQ.max())):
        here_BQ = np.where(hop < hop_BQ, np.take_along_axis(next_BN, here_BQ, 1), here_BQ)
    return here_BQ


def _cycles(symbols: int) -> Ints:
    """All mappings that are one cycle, as (C, N); the entry [cycle, a] is f(a)."""
    tour_CN = np.array([(0, *rest) for rest in permutations(range(1, symbols))], np.int64)
    next_CN = np.empty_like(tour_CN)
    np.put_along_axis(next_CN, tour_CN, np.roll(tour_CN, -1, 1), 1)
    return next_CN
