"""Reads the files of a run's folder that a report needs: its recipe and its logs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mixtura.checkpoints.model_kind import what_is
from mixtura.config import Config, read_yaml
from mixtura.errors import CheckpointError, ConfigError, DataError, reading
from mixtura.insight.curves import Curves
from mixtura.json_reader import read_object
from mixtura.models import ModelConfig
from mixtura.runs.folder import RunFolder

TWIN = "dense"


class _Section(Config):
    """The section `model` of a recipe."""

    model: ModelConfig


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What a report needs of a run: parts of the recipe, and the curves so far."""

    folder: Path
    name: str
    model: ModelConfig
    steps: int
    """the number of planned steps, after all corrections of the plan"""
    length: int
    """the number of tokens of a training sequence"""
    source: str
    """the kind of source that the training text comes from, such as `stdlib`"""
    corpus: str | None
    """digest of the corpus that the run was trained on"""
    recent_max_over_mean: tuple[float, ...] | None
    """for each MoE layer, the busiest expert's load divided by the mean load, in the last 100
    steps; None before the run is complete"""
    curves: Curves

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a run. Raises CheckpointError if there is no run, DataError for a damaged log."""
        with reading(folder):
            return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> Self:
        recipe = RunFolder(folder).recipe
        if what_is(folder) != "run":
            raise CheckpointError(
                f"{folder}: holds no run ({recipe.name} is missing); give the folder of a training "
                "run"
            )
        try:
            tree = read_yaml(recipe)
            return cls(
                folder=folder,
                name=str(tree["name"]),
                model=_Section.parse({"model": tree["model"]}, str(recipe)).model,
                steps=_steps(folder, tree),
                length=int(tree["train"]["length"]),
                source=str(tree["data"]["source"]["kind"]),
                corpus=_json(RunFolder(folder).corpus).get("digest"),
                recent_max_over_mean=_recent(folder),
                curves=Curves.read(folder),
            )
        except (CheckpointError, DataError):
            raise
        except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{recipe}: not the recipe of a run ({error}); it was changed, or written "
                "by another version of Mixtura"
            ) from error

    @property
    def moe_layers(self) -> list[int]:
        """The numbers of the MoE layers, in order."""
        return list(self.model.moe_shapes)

    @property
    def done(self) -> int:
        """The last step in the log."""
        return int(self.curves.step_I[-1]) if len(self.curves.step_I) else 0


def _steps(folder: Path, recipe: Mapping[str, Any]) -> int:
    corrections = _json(RunFolder(folder).steps).get("corrections")
    return int(corrections[-1]["steps"] if corrections else recipe["train"]["steps"])


def _recent(folder: Path) -> tuple[float, ...] | None:
    path = RunFolder(folder).summary
    found = _json(path).get("load_max_over_mean")
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(one, int | float) for one in found):
        raise CheckpointError(
            f"{path}: load_max_over_mean={found!r:.60} should be a list of numbers; remove the file"
        )
    return tuple(map(float, found))


def _json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; it is empty if there is no file.

    Raises CheckpointError for a damaged file.
    """
    try:
        return read_object(path, CheckpointError)
    except FileNotFoundError:
        return {}


def find_twin(run: RecordedRun) -> Path | None:
    """The folder `dense` beside an MoE's run, if it holds a run on the same corpus, else None."""
    beside = run.folder.resolve().parent / TWIN
    if not run.moe_layers or what_is(beside) != "run":
        return None
    return beside if _json(RunFolder(beside).corpus).get("digest") == run.corpus else None
