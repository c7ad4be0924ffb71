"""Facts to remember. B sequences, S positions, F facts."""

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from mixtura.config import Config
from mixtura.data.batches import Batch
from mixtura.data.synthetic.questions import NO_ANSWER, Ints, Purpose, as_batch, random_numbers


class RecallConfig(Config):
    """A fixed random table (entity, relation) -> value; a batch covers `batch` facts."""

    entities: int = Field(ge=1)
    relations: int = Field(ge=1)
    values: int = Field(ge=2)
    batch: int = Field(ge=1)
    # It determines the table, and the order of its facts in each epoch.
    seed: int = Field(default=0, ge=0)

    @property
    def facts(self) -> int:
        return self.entities * self.relations


class Recall:
    """Fact recall: a sequence is an entity and a relation, with the value as the last target.

    Nothing in the context helps, and no fact follows from others: a right answer is stored in the
    weights. In an epoch each fact occurs once, in an order of that epoch; batches go on from one
    epoch to the next. Tokens: entities, then relations, then values.
    """

    length = 2

    def __init__(self, config: RecallConfig) -> None:
        self.config = config
        self.vocabulary = config.entities + config.relations + config.values
        self._value_F = random_numbers(config.seed, Purpose.TABLE, 0, config.facts) % config.values
        self._epoch: tuple[int, Ints] | None = None

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0: (B, 2)."""
        facts = self.config.facts
        place_B = np.arange(step * self.config.batch, (step + 1) * self.config.batch)
        epochs = range(place_B[0] // facts, place_B[-1] // facts + 1)
        order = np.concatenate([self._order(epoch) for epoch in epochs])
        return self._batch_of(order[place_B - epochs[0] * facts])

    def every_fact(self) -> Iterator[Batch]:
        """Each fact once, in the table's order; the last batch may be smaller."""
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
