"""Reads and writes the checkpoints of a run, without pickle.

A checkpoint is one folder for a step, such as step-00000123/, which appears whole or not at all. It
has model.safetensors (the decoder's tensors under their own names), optimizer.safetensors (AdamW's
moments by parameter), state.safetensors (the random state, and the expert load of the latest 100
steps), state.json (step, tokens, seconds, digests and versions) and digests.json (a digest per
tensor).
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field
from safetensors import SafetensorError

from mixtura.config import Config
from mixtura.errors import CheckpointError, ConfigError
from mixtura.files import atomic_folder
from mixtura.integrity import Check
from mixtura.json_reader import read_object
from mixtura.ranks import ONE_RANK, Ranks
from mixtura.shapes import ModelShape
from mixtura.tensor_files.digests import digests_of, folder_claims, recorded_digests, write_digests
from mixtura.tensor_files.header import read_header
from mixtura.tensor_files.safetensors_writer import write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


MODEL, OPTIMIZER, STATE, META = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.safetensors",
    "state.json",
)
FILES = (MODEL, OPTIMIZER, STATE)
T = TypeVar("T")

_MOMENTS = frozenset({"exp_avg", "exp_avg_sq", "step"})

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class TrainerState:
    """All that the next step depends on, except the plan of steps and the batches.

    The tensors are the trainer's own, not copies.
    """

    step: int
    tokens: int
    seconds: float
    model: "dict[str, Tensor]"
    optimizer: "dict[str, Tensor]"
    random: "dict[str, Tensor]"
    watch: "dict[str, Tensor]"


class CheckpointMeta(Config):
    """The content of state.json."""

    format: Literal[1] = 1
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    seconds: float = Field(ge=0)
    recipe: str
    """digest of the run's recipe.yaml"""
    corpus: str
    """digest of the corpus"""
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run; `save` keeps the newest `keep`. Only the first rank writes."""

    folder: Path
    keep: int = 1
    ranks: Ranks = ONE_RANK

    def all(self) -> list[Path]:
        """The folders of all checkpoints, the oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=step_of)

    def newest(self) -> Path | None:
        return next(reversed(self.all()), None)

    def save(self, state: TrainerState, recipe: str, corpus: str, versions: dict[str, str]) -> Path:
        """Write a checkpoint, then remove all but the newest `keep`. Raises StorageError.

        Each rank returns only after the checkpoint is written.
        """
        target = self.folder / f"step-{state.step:08d}"
        if self.ranks.index == 0:
            self._write(target, state, recipe, corpus, versions)
        self.ranks.barrier()
        return target

    def _write(
        self, target: Path, state: TrainerState, recipe: str, corpus: str, versions: dict[str, str]
    ) -> None:
        meta = CheckpointMeta(
            step=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            recipe=recipe,
            corpus=corpus,
            versions=versions,
        )
        with atomic_folder(target) as partial:
            files = {
                MODEL: state.model,
                OPTIMIZER: state.optimizer,
                STATE: _joined(random=state.random, watch=state.watch),
            }
            for name, tensors in files.items():
                write_tensors(partial / name, tensors, target)
            write_digests(partial, {name: digests_of(files[name]) for name in files})
            (partial / META).write_text(meta.model_dump_json(indent=1), encoding="utf-8")
        for old in self.all()[: -self.keep]:
            self._remove(old)

    def clean(self) -> None:
        """Remove incomplete folders of killed processes. The caller must hold the run's lock."""
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def attempt(self, path: Path, read: Callable[[Path], T]) -> T:
        """Return `read(path)`; add a remedy to the CheckpointError that it raises."""
        try:
            return read(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._remedy(path)}") from error

    def check(self, path: Path, model: ModelShape, files: Sequence[str] = FILES) -> Check:
        """Return a check, not yet begun, that compares a checkpoint's files with their digests.

        Raises CheckpointError if the recorded digests are not those of the files' tensors.
        """
        recorded = self.attempt(path, recorded_digests)
        if recorded is None:
            return Check(unchecked=(f"{path}: no tensor has a digest",))
        roles = model.roles()

        def role_of(name: str) -> str | None:
            stem, _, part = name.rpartition(".")
            return "optimizer state" if stem in roles and part in _MOMENTS else roles.get(name)

        chosen = {file: recorded.get(file, {}) for file in files}
        claims = self.attempt(path, lambda path: list(folder_claims(path, chosen, role_of)))
        return Check(claims, lambda: self._remedy(path))

    def _remedy(self, damaged: Path) -> str:
        for older in reversed(self.all()):
            if step_of(older) < step_of(damaged) and is_whole(older):
                return f"remove {damaged} to go on from {older.name}"
        return "no older checkpoint is whole, so train again with another --out"

    def _remove(self, path: Path) -> None:
        # The folder is renamed first, so that a process that is killed meanwhile does not leave a
        # checkpoint without some of its files.
        doomed = path.rename(path.with_name(f".{path.name}.removed.partial"))
        shutil.rmtree(doomed, ignore_errors=True)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def read(path: Path) -> tuple[TrainerState, CheckpointMeta]:
    """Read a checkpoint to the CPU. Raises CheckpointError if a file is missing or cut short."""

    meta = read_meta(path)
    extra = read_tensors(path / STATE)
    state = TrainerState(
        step=meta.step,
        tokens=meta.tokens,
        seconds=meta.seconds,
        model=read_tensors(path / MODEL),
        optimizer=read_tensors(path / OPTIMIZER),
        random=_part(extra, "random"),
        watch=_part(extra, "watch"),
    )
    return state, meta


def read_meta(path: Path) -> CheckpointMeta:
    place = path / META
    try:
        return CheckpointMeta.parse(read_object(place, CheckpointError), str(place))
    except FileNotFoundError:
        raise CheckpointError(f"{place}: is missing") from None
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a file. Raises CheckpointError if the file is missing or cut short."""
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def is_whole(path: Path) -> bool:
    """Whether state.json is valid, and each tensor file is as long as its header states."""
    try:
        read_meta(path)
        for name in FILES:
            read_header(path / name)
    except CheckpointError:
        return False
    return True


def check_fits(model: "nn.Module", tensors: "Mapping[str, Tensor]", path: Path) -> None:
    """Raise CheckpointError if `tensors` have other names or shapes than the model's tensors.

    The error names the first tensor that differs.
    """
    expected = model.state_dict()
    for name in [*expected, *tensors]:
        ours, theirs = (
            None if found is None else list(found.shape)
            for found in (expected.get(name), tensors.get(name))
        )
        if ours != theirs:
            raise CheckpointError(
                f"{path}: of another model: {name} is {theirs or 'absent'} there, "
                f"and {ours or 'absent'} in the recipe's model"
            )


def _joined(random: "Mapping[str, Tensor]", watch: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {f"random.{name}": value for name, value in random.items()} | {
        f"watch.{name}": value for name, value in watch.items()
    }


def _part(tensors: "Mapping[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
