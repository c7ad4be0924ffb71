"""Runs recipes by name and seed, one process and one core at a time, and records what they gave.

Each finished run leaves one file, so a sweep that was stopped goes on where it stood when the same
command is given again. The scripts beside this one each hold a list of recipes and the claims that
their figures are held against; see `python experiments/balance_ablation.py --help`.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from mixtura.config import Tree, with_overrides
from mixtura.files import atomic_text
from mixtura.runs import Recipe, load_recipe
from mixtura.train.view import duration

HERE = Path(__file__).resolve().parent
ONE_RUN = HERE / "one_run.py"
LAPTOP = HERE / "laptop.yaml"


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe with a name, and the seeds that it is trained with."""

    name: str
    recipe: Recipe
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One finished run."""

    name: str
    seed: int
    measures: Tree


@dataclass(frozen=True, slots=True)
class Options:
    """What every sweep's command line says."""

    base: Path
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    only: tuple[str, ...]
    runs: Path
    out: Path

    def recipe(self, *overrides: str) -> Recipe:
        """The base recipe with a variant's settings, and the command line's over them."""
        return load_recipe(self.base, [*overrides, *self.overrides])


def options_for(script: str, description: str | None, base: Path = LAPTOP) -> Options:
    """Read the command line of the experiment in file `script`; `base` is its base recipe."""
    name = Path(script).stem
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base",
        type=Path,
        default=base,
        help="the recipe that the variants change; give your own to use other text (%(default)s)",
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="change every variant, as in --set train.steps=600; may be given again",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--only", nargs="+", default=[], help="run these variants alone")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs", "experiments", name),
        help="where finished runs are kept; the same command goes on from there (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "results" / f"{name}.json", help="(%(default)s)"
    )
    given = parser.parse_args()
    overrides, seeds, only = tuple(given.overrides), tuple(given.seeds), tuple(given.only)
    return Options(given.base, overrides, seeds, only, given.runs, given.out)


def sweep(variants: Sequence[Variant], runs: Path) -> list[Row]:
    """Every variant at each of its seeds; what is in `runs` already is not run again.

    Seeds turn slowest, so that a sweep stopped early has compared all variants. Raises SystemExit
    where a run fails, and on Ctrl-C.
    """
    try:
        return _sweep(variants, runs)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; finished runs are in {runs}: call again to go on") from None


def _sweep(variants: Sequence[Variant], runs: Path) -> list[Row]:
    pairs = ((variant, seed) for variant in variants for seed in variant.seeds)
    todo = sorted(pairs, key=lambda pair: pair[1])
    rows: list[Row] = []
    began, fresh = monotonic(), 0
    for number, (variant, seed) in enumerate(todo, start=1):
        recipe = _seeded(variant, seed)
        path = runs / f"{_file_name(variant.name)}-seed{seed}.json"
        measures = _kept(path, recipe)
        if measures is None:
            left = (monotonic() - began) / fresh * (len(todo) - number + 1) if fresh else None
            _tell(f"run {number}/{len(todo)}: {recipe.name}", left)
            measures = _run(recipe, path)
            fresh += 1
        rows.append(Row(variant.name, seed, measures))
    return rows


def _seeded(variant: Variant, seed: int) -> Recipe:
    changes = (f"train.seed={seed}",)
    tree = with_overrides(variant.recipe.tree(), changes)
    return Recipe.parse({**tree, "name": f"{variant.name}, seed {seed}"})


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _kept(path: Path, recipe: Recipe) -> Tree | None:
    """The measures of an earlier run of the very same recipe."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text("utf-8"))
    if kept["recipe"] == recipe.tree():
        return kept["measures"]
    _tell(f"{path} is of another recipe and is run again")
    return None


def _run(recipe: Recipe, path: Path) -> Tree:
    with tempfile.TemporaryDirectory() as folder:
        given, measured = Path(folder, "recipe.json"), Path(folder, "measures.json")
        given.write_text(json.dumps(recipe.tree()), "utf-8")
        # In a process of its own: peak memory is this run's, and a crash loses this run alone.
        command = [sys.executable, str(ONE_RUN), str(given), str(measured)]
        if _exit_status(command):
            raise SystemExit(f"{recipe.name} failed; the runs that finished are in {path.parent}")
        measures = json.loads(measured.read_text("utf-8"))
    atomic_text(path, json.dumps({"recipe": recipe.tree(), "measures": measures}, indent=1) + "\n")
    return measures


def _exit_status(command: Sequence[str]) -> int:
    """Of a run; a Ctrl-C ends it too, before it is passed on."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _tell(line: str, seconds_left: float | None = None) -> None:
    left = "" if seconds_left is None else f" ({duration(seconds_left)} left)"
    print(f"{line}{left}", file=sys.stderr, flush=True)


def record(out: Path, result: Tree) -> None:
    """Write an experiment's result with the command and the machine; the last line of stdout."""
    script = Path(sys.argv[0])
    full = {
        "experiment": script.stem,
        "command": shlex.join(["python", f"experiments/{script.name}", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **result,
    }
    atomic_text(out, json.dumps(full, indent=1) + "\n")
    print(json.dumps(full))


def settings(variants: Sequence[Variant]) -> Tree:
    """The first variant's recipe, and by dotted key what each of the others has instead."""
    first = variants[0].recipe.tree()
    base = dict(_leaves(first))
    leaves = {variant.name: dict(_leaves(variant.recipe.tree())) for variant in variants[1:]}
    differences = {
        name: {key: own.get(key) for key in base | own if base.get(key) != own.get(key)}
        for name, own in leaves.items()
    }
    return {"settings": first, "differences": differences}


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
