"""A run's folder: what it holds, whose it is, and one writer at a time.

recipe.yaml      the full recipe; written last, so a folder that has it is complete
shape.json       the model's config and its counts
environment.json versions, threads, device, each MoE layer's products; of the latest start
corpus.json      what the run trained on
tokenizer/       all that turns text into the run's tokens and back
log.jsonl        one object a logged step
eval.jsonl       one object an evaluation
checkpoints/     step-00000123/, the newest few
tensorboard/     the same curves as event files
summary.json     once the run is complete
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.data import Corpus
from mixtura.errors import CheckpointError, ConfigError, StorageError
from mixtura.files import atomic_text
from mixtura.train.checkpoint import Checkpoints
from mixtura.train.recipe import Recipe, first_difference, load_recipe

# All that a start which was killed before it wrote recipe.yaml can have left.
_WRITTEN_FIRST = {"tokenizer", "shape.json", "corpus.json"}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run, and the rules of who may write there."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.root / "eval.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    def checkpoints(self, keep: int = 1) -> Checkpoints:
        return Checkpoints(self.root / "checkpoints", keep)

    def recorded(self) -> Recipe | None:
        """The recipe of the run that is here, if one is. Raises CheckpointError if damaged."""
        if not self.recipe.exists():
            return None
        try:
            return load_recipe(self.recipe)
        except ConfigError as error:
            raise CheckpointError(
                f"{error}; this run's recipe was changed, or written by another version of Mixtura"
            ) from error

    def recipe_digest(self) -> str:
        """Of the file: it stays the same when a later version adds keys."""
        return hashlib.sha256(self.recipe.read_bytes()).hexdigest()

    def check(self, recipe: Recipe, *, resume: bool) -> None:
        """Raises where this run must not be written here, naming the reason and the remedy."""
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise StorageError(f"{self.root}: is a file, not a folder; choose another --out")
        recorded = self.recorded()
        if recorded is None:
            self._refuse_foreign_files()
            return
        difference = first_difference(recipe, recorded)
        if difference is not None:
            key, ours, theirs = difference
            raise CheckpointError(
                f"{self.root}: already holds a different run: {key} is {theirs!r} there and "
                f"{ours!r} here; choose another --out, or resume with the recipe as it was"
            )
        if not resume:
            raise CheckpointError(
                f"{self.root}: already holds this run; go on with --resume, or choose another --out"
            )

    def _refuse_foreign_files(self) -> None:
        names = sorted(entry.name for entry in self.root.iterdir())
        known = _WRITTEN_FIRST | {name for name in names if name.startswith(".")}
        foreign = [name for name in names if name not in known]
        if foreign:
            raise StorageError(
                f"{self.root}: holds {foreign[0]!r} and no run ({self.recipe.name} is missing); "
                "choose an empty or new --out"
            )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, and hold it against any other process. Raises StorageError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root, os.O_RDONLY)
        except OSError as error:
            raise StorageError(
                f"{self.root}: cannot be made ({error.strerror}); choose another --out"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StorageError(
                f"{self.root}: another process is training there; wait, or choose another --out"
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)

    def create(self, recipe: Recipe, corpus: Corpus) -> None:
        """Write what stays the same throughout the run."""
        corpus.tokenizer.save(self.tokenizer)
        self._write_json("shape.json", _shape(recipe))
        self._write_json("corpus.json", _corpus(corpus))
        atomic_text(self.recipe, recipe.to_yaml())

    def write_environment(self, environment: dict[str, Any]) -> dict[str, Any]:
        """Record the environment of this start; gives that of the one before, or an empty one."""
        before = {}
        if self.environment.exists():
            before = json.loads(self.environment.read_text(encoding="utf-8"))
        self._write_json(self.environment.name, environment)
        return before

    def write_summary(self, summary: dict[str, Any]) -> None:
        self._write_json(self.summary.name, summary)

    def _write_json(self, name: str, tree: dict[str, Any]) -> None:
        atomic_text(self.root / name, json.dumps(tree, indent=1) + "\n")


def _shape(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    return {
        "model": model.model_dump(mode="json"),
        "total_parameters": model.total_parameters(),
        "active_parameters": {
            "A": model.active_parameters("A"),
            "B": model.active_parameters("B"),
        },
        "flops_per_token": model.flops_per_token(recipe.train.length),
    }


def _corpus(corpus: Corpus) -> dict[str, Any]:
    return {
        "digest": corpus.digest,
        "vocabulary": corpus.vocabulary,
        "domains": list(corpus.domains),
        **{
            side.name: {
                "tokens": len(side),
                "documents": len(side.starts),
                "bytes": side.bytes_of_text,
                "domain_bytes": dict(side.domain_bytes),
            }
            for side in (corpus.train, corpus.heldout)
        },
    }
