"""The keys of a recipe that may change when a run is resumed, and the record of such changes.

The file changes.jsonl in a run's folder has one JSON object for each change. It states the last
step before the change, the old and the new value of each changed key, the digests of recipe.yaml
before and after the change, and the recipe before the change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mixtura.config import Config, Tree
from mixtura.runs.journal import Journal, read_journal
from mixtura.runs.recipe import Recipe

# These keys affect neither the steps already done nor the content of a batch. `train.dtype` may
# change, since weights and AdamW's moments are fp32 for both of its values. `train.betas` may not,
# since AdamW's bias correction assumes that the betas are the same from the first step on.
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
    """the old and the new value, by dotted key"""
    before: str
    """digest of recipe.yaml before the change"""
    after: str
    """digest of recipe.yaml after the change"""
    recipe: Tree
    """the recipe before the change"""


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """The file with the changes of one run, the oldest change first."""

    path: Path

    def leading_to(self, digest: str) -> list[Change]:
        """Return the changes that led to the recipe.yaml with this digest, the oldest first.

        Other records are left out. They come from a process that recorded a change, but was killed
        before it wrote the new recipe.yaml.
        """
        found: list[Change] = []
        for record in reversed(read_journal(self.path)):
            change = Change.parse(record, str(self.path))
            if change.after == digest:
                found.insert(0, change)
                digest = change.before
        return found

    def append(self, change: Change) -> None:
        """Add a record, and return when it is on the disk. Raises StorageError."""
        journal = Journal(self.path)
        try:
            journal.append(change.model_dump(mode="json"))
            journal.sync()
        finally:
            journal.close()


@dataclass(frozen=True, slots=True)
class ChangedKeys:
    """The dotted keys that the user set by name; a resumed run may change only these keys."""

    keys: tuple[str, ...] = ()

    @classmethod
    def set_by(cls, overrides: Sequence[str]) -> Self:
        """Return the keys of KEY=VALUE texts.

        A key inside `train.schedule` counts as `train.schedule`: schedules of different kinds have
        different keys, so the whole schedule is replaced.
        """
        names = [override.partition("=")[0].strip() for override in overrides]
        whole = "train.schedule"
        return cls(tuple(whole if name.startswith(f"{whole}.") else name for name in names))

    def __contains__(self, leaf: str) -> bool:
        return any(leaf == key or leaf.startswith(f"{key}.") for key in self.keys)

    def applied(self, recorded: Recipe, given: Recipe) -> Recipe:
        """Return the recipe `recorded` with the values that `given` has for these keys."""
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
