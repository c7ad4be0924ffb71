"""A run's folder: its files, the checks that it belongs to a run, and the lock of its one writer.

recipe.yaml      the full recipe; written after tokenizer/, origin.json, shape.json and corpus.json
shape.json       the model's config, and its numbers of parameters and FLOPs
changes.jsonl    one object for each change of the recipe in a resumed run
origin.json      the model whose weights the run began with; absent if they were random
environment.json versions, threads, device and kinds of matrix products at the run's latest start
corpus.json      the digest and the sizes of the corpus
steps.json       corrections of the recipe's number of steps
tokenizer/       the run's tokenizer
log.jsonl        one object for each logged step
eval.jsonl       one object for each evaluation
checkpoints/     the newest checkpoints, such as step-00000123/
tensorboard/     the curves of log.jsonl and eval.jsonl as TensorBoard's event files
summary.json     the results, once the run is complete
"""

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
from mixtura.json_reader import read_object
from mixtura.posix import fcntl
from mixtura.runs.changes import Change, ChangedKeys, ChangeLog, is_changeable
from mixtura.runs.checkpoint import Checkpoints
from mixtura.runs.file_names import CHECKPOINTS, RECIPE
from mixtura.runs.recipe import Recipe, differences, load_recipe
from mixtura.runs.step_plan import Corrections, StepPlan

# A new run that is killed before it writes recipe.yaml may leave these files.
_WRITTEN_FIRST = {"tokenizer", "origin.json", "shape.json", "corpus.json"}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of a run's files, and the rules for writing them."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / RECIPE

    @property
    def changes(self) -> ChangeLog:
        return ChangeLog(self.root / "changes.jsonl")

    @property
    def origin(self) -> Path:
        return self.root / "origin.json"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def steps(self) -> Path:
        return self.root / "steps.json"

    @property
    def corpus(self) -> Path:
        return self.root / "corpus.json"

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
        return Checkpoints(self.root / CHECKPOINTS, keep)

    def recorded(self) -> Recipe | None:
        """Read recipe.yaml; None if it does not exist. Raises CheckpointError if it is damaged."""
        if not self.recipe.exists():
            return None
        try:
            return load_recipe(self.recipe)
        except ConfigError as error:
            raise CheckpointError(
                f"{error}; this run's recipe was changed, or written by another version of Mixtura"
            ) from error

    def recipe_digest(self) -> str:
        """Return the SHA-256 of the file recipe.yaml.

        It stays the same when a later version of Mixtura adds keys to recipes.
        """
        return hashlib.sha256(self.recipe.read_bytes()).hexdigest()

    def recipe_digests(self) -> set[str]:
        """Return the digest of recipe.yaml now, and its digests before each change of the run."""
        now = self.recipe_digest()
        return {now, *(change.before for change in self.changes.leading_to(now))}

    def check(self, recipe: Recipe, *, resume: bool, changed: ChangedKeys | None = None) -> Recipe:
        """Return the recipe to train in this folder: `recipe` for a new run, else the recorded one.

        A resumed run keeps its recorded recipe, except for the keys in `changed`. Raises
        CheckpointError or StorageError, with a remedy, if the run must not be written to this
        folder.
        """
        if not self.root.exists():
            return recipe
        if not self.root.is_dir():
            raise StorageError(f"{self.root}: is a file, not a folder; choose another --out")
        recorded = self.recorded()
        if recorded is None:
            self._refuse_foreign_files()
            return recipe
        changing = (changed or ChangedKeys()) if resume else ChangedKeys()
        self._refuse_differences(recipe, recorded, changing)
        if not resume:
            raise CheckpointError(
                f"{self.root}: already holds this run; go on with --resume, or choose another --out"
            )
        return changing.applied(recorded, recipe)

    def _refuse_differences(self, recipe: Recipe, recorded: Recipe, changing: ChangedKeys) -> None:
        """Raise CheckpointError if a key of `recipe` differs from the run's recorded recipe.

        A key may differ if it is changeable and is in `changing`, or if `recipe` has the value that
        the key had before a recorded change.
        """
        before = [
            Recipe.parse(change.recipe, str(self.changes.path))
            for change in self.changes.leading_to(self.recipe_digest())
        ]
        for key, ours, theirs in differences(recipe, recorded):
            if key in changing and is_changeable(key):
                continue
            if any(key not in {one for one, _, _ in differences(recipe, old)} for old in before):
                continue
            raise CheckpointError(
                f"{self.root}: already holds a different run: {key} is {theirs!r} there and "
                f"{ours!r} here; {self._remedy(key, ours, changing)}"
            )

    def _remedy(self, key: str, ours: Any, changing: ChangedKeys) -> str:
        if key in changing:
            return (
                f"a run that goes on cannot change it; begin another one with --from {self.root} "
                "and another --out"
            )
        if is_changeable(key):
            return (
                "choose another --out, resume with the recipe as it was, or change it with "
                f"--resume --set {key}={json.dumps(ours)}"
            )
        return "choose another --out, or resume with the recipe as it was"

    def change(self, recipe: Recipe, step: int) -> list[str]:
        """Record that the run continues with `recipe` after `step` steps.

        Returns a line for each key that changes.
        """
        recorded = self.recorded()
        assert recorded is not None, "a run goes on"
        changed = {key: (old, new) for key, new, old in differences(recipe, recorded)}
        if not changed:
            return []
        text = recipe.to_yaml()
        # The record is written before the recipe, since a record without its recipe is ignored.
        self.changes.append(
            Change(
                step=step,
                changed=changed,
                before=self.recipe_digest(),
                after=hashlib.sha256(text.encode("utf-8")).hexdigest(),
                recipe=recorded.tree(),
            )
        )
        if "train.steps" in changed:
            # The corrections belong to the old number of steps.
            self.steps.unlink(missing_ok=True)
        atomic_text(self.recipe, text)
        # The summary describes the run as it was before the change.
        self.summary.unlink(missing_ok=True)
        return [
            f"{key}: {old} -> {new}, from step {step + 1}" for key, (old, new) in changed.items()
        ]

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
        """Make the folder, and lock it until the block ends. Raises StorageError if that fails."""
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

    def create(self, recipe: Recipe, corpus: Corpus, origin: dict[str, Any] | None = None) -> None:
        """Write the files that a run begins with; `origin` is the content of origin.json."""
        corpus.tokenizer.save(self.tokenizer)
        if origin is None:
            # An earlier start that was killed may have left the file.
            self.origin.unlink(missing_ok=True)
        else:
            self._write_json(self.origin.name, origin)
        self._write_json("shape.json", _shape(recipe))
        self._write_json(self.corpus.name, _corpus(corpus))
        atomic_text(self.recipe, recipe.to_yaml())

    def plan(self, recipe: Recipe) -> StepPlan:
        """Return the recipe's steps with the corrections in steps.json.

        Raises CheckpointError if that file is damaged.
        """
        if not self.steps.exists():
            return StepPlan(recipe.train.steps)
        try:
            known = Corrections.parse(read_object(self.steps, CheckpointError), self.steps.name)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.steps}: cannot be read ({error}); bring it back, as the learning rate of "
                "every later step follows from it"
            ) from error
        return StepPlan(recipe.train.steps, known.corrections)

    def write_plan(self, plan: StepPlan) -> None:
        tree = Corrections(corrections=plan.corrections).model_dump(mode="json")
        self._write_json(self.steps.name, tree)

    def write_environment(self, environment: dict[str, Any]) -> dict[str, Any]:
        """Write environment.json; return its previous content, or an empty dict for a new run."""
        try:
            before = read_object(self.environment, CheckpointError)
        except FileNotFoundError:
            before = {}
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
