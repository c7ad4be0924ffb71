"""The keys that may change when a run goes on, and the record of changes.

changes.jsonl in a run's folder has one object a change: the step after which it holds, each key
with its old and new value, the digests of recipe.yaml before and after, and the recipe before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mixtura.config import Config, Tree
from mixtura.runs.journal import Journal, read_journal
from mixtura.runs.recipe import Recipe

# None of these keys changes the steps already done, or the content of a batch. Weights and moments
# are fp32 in either dtype. `betas` are not among them: AdamW's bias correction assumes that they
# were the same from the first step on.
CHANGEABLE = (
    "train.steps",
    "train.lr",
    "train.router_lr",
    "train.warmup",
    "train.schedule",
    "train.weight_decay",
    "train.clip",
    "train.dtype",
    "train.device",
    "train.threads",
    "train.eval_every",
    "train.eval_tokens",
    "train.checkpoint_every",
    "train.keep",
    "train.log_every",
    "train.tensorboard",
)


class Change(Config):
    """One line of changes.jsonl."""

    step: int
    """the last step before the change"""
    changed: dict[str, tuple[Any, Any]]
    """by dotted key: the value before, and the value since"""
    before: str
    """digest of recipe.yaml before the change"""
    after: str
    """digest of recipe.yaml after the change"""
    recipe: Tree
    """before the change"""


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """The changes of one run, oldest first."""

    path: Path

    def leading_to(self, digest: str) -> list[Change]:
        """The changes that led to the recipe.yaml with this digest.

        A process killed after it recorded a change and before it wrote the new recipe.yaml leaves a
        record that leads to no recipe.
        """
        found: list[Change] = []
        for record in reversed(read_journal(self.path)):
            change = Change.parse(record, str(self.path))
            if change.after == digest:
                found.insert(0, change)
                digest = change.before
        return found

    def append(self, change: Change) -> None:
        """Raises StorageError. The record is on the disk when this returns."""
        journal = Journal(self.path)
        try:
            journal.append(change.model_dump(mode="json"))
            journal.sync()
        finally:
            journal.close()


@dataclass(frozen=True, slots=True)
class ChangedKeys:
    """The dotted keys that the user set by name, to change them in a run that goes on."""

    keys: tuple[str, ...] = ()

    @classmethod
    def set_by(cls, overrides: Sequence[str]) -> Self:
        """From KEY=VALUE texts. A schedule changes as a whole: each kind has keys of its own."""
        names = [override.partition("=")[0].strip() for override in overrides]
        whole = "train.schedule"
        return cls(tuple(whole if name.startswith(f"{whole}.") else name for name in names))

    def __contains__(self, leaf: str) -> bool:
        return any(leaf == key or leaf.startswith(f"{key}.") for key in self.keys)

    def applied(self, recorded: Recipe, given: Recipe) -> Recipe:
        """`recorded`, with these keys' values from `given`."""
        tree = recorded.tree()
        for key in self.keys:
            *parents, leaf = key.split(".")
            node, source = tree, given.tree()
            for parent in parents:
                node, source = node[parent], source[parent]
            node[leaf] = source[leaf]
        return Recipe.parse(tree, "recipe")


def is_changeable(leaf: str) -> bool:
    return leaf in ChangedKeys(CHANGEABLE)
