"""The task of remembering facts. B sequences, S positions, F facts."""

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from mixtura.config import Config
from mixtura.data.batches import Batch
from mixtura.data.synthetic.questions import NO_ANSWER, Ints, Purpose, as_batch, random_numbers


class RecallConfig(Config):
    """The size of a random table (entity, relation) -> value, and the facts of a batch."""

    entities: int = Field(ge=1)
    relations: int = Field(ge=1)
    values: int = Field(ge=2)
    batch: int = Field(ge=1)
    # The seed determines the table, and the order of its facts in each epoch.
    seed: int = Field(default=0, ge=0)

    @property
    def facts(self) -> int:
        return self.entities * self.relations


class Recall:
    """Facts of a table: a sequence is an entity and a relation, and the last target is the value.

    The context does not help, and no fact follows from other facts, so only weights can store the
    answers. Each fact occurs once in each epoch, and each epoch has its own random order. A batch
    may end one epoch and begin the next. Token numbers: entities, then relations, then values.
    """

    length = 2

    def __init__(self, config: RecallConfig) -> None:
        self.config = config
        self.vocabulary = config.entities + config.relations + config.values
        self._value_F = random_numbers(config.seed, Purpose.TABLE, 0, config.facts) % config.values
        self._epoch: tuple[int, Ints] | None = None

    def at(self, step: int) -> Batch:
        """The batch of `step`, counted from 0; its tensors are (B, 2)."""
        facts = self.config.facts
        place_B = np.arange(step * self.config.batch, (step + 1) * self.config.batch)
        epochs = range(place_B[0] // facts, place_B[-1] // facts + 1)
        order = np.concatenate([self._order(epoch) for epoch in epochs])
        return self._batch_of(order[place_B - epochs[0] * facts])

    def every_fact(self) -> Iterator[Batch]:
        """Batches that have each fact once, in the table's order; the last may be smaller."""
        for first in range(0, self.config.facts, self.config.batch):
            yield self._batch_of(
                np.arange(first, min(first + self.config.batch, self.config.facts))
            )

    def _order(self, epoch: int) -> Ints:
        if self._epoch is None or self._epoch[0] != epoch:
            raw_F = random_numbers(self.config.seed, Purpose.ORDER, epoch, self.config.facts)
            self._epoch = epoch, np.argsort(raw_F, kind="stable")
        return self._epoch[1]

    def _batch_of(self, fact_B: Ints) -> Batch:
        entities, relations = self.config.entities, self.config.relations
        entity_B, relation_B = np.divmod(fact_B, relations)
        tokens_BS = np.stack([entity_B, entities + relation_B], 1)
        targets_BS = np.full_like(tokens_BS, NO_ANSWER)
        targets_BS[:, 1] = entities + relations + self._value_F[fact_B]
        return as_batch(tokens_BS, targets_BS, np.zeros_like(tokens_BS))
