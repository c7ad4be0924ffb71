"""A run's folder: its logs, its recipe, and what its checkpoint says of itself."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.kind import Kind
from tests.fuzz.mutations import json_text, spoilt_bytes, spoilt_tree
from tests.fuzz.plain_yaml import parsed_once, plain_yaml
from tests.fuzz.usage import continued

_CHECKPOINT = "checkpoints/step-00000004"
_JSON = (
    "environment.json",
    "corpus.json",
    "summary.json",
    f"{_CHECKPOINT}/state.json",
    "tokenizer/tokenizer.mixtura.json",
)
# Beside the folders of cases: a corpus that is packed once.
_FEW = "few-tokens"
_LINES = ("log.jsonl", "eval.jsonl")
_TENSORS = ("model.safetensors", "optimizer.safetensors", "state.safetensors")


class Runs(Kind):
    """A log's lines and objects with changes; the bytes of any file; a step's folder renamed."""

    name = "runs"
    fast_cases = 30

    def make_valid(self, folder: Path) -> None:
        import torch

        from mixtura.data import DataConfig, prepare
        from mixtura.runs import Recipe
        from mixtura.train import train

        torch.set_num_threads(1)
        text = folder.parent / "text"
        text.mkdir()
        for start in range(20):
            counted = ", ".join(map(str, range(start, start + 200)))
            (text / f"{start}.txt").write_text(counted)
        run = folder.parent / "run"
        train(Recipe.parse(_recipe(text)), run, cache=folder.parent / "cache")
        shutil.copytree(run, folder / "run")
        # So little that a report on it takes milliseconds.
        few = folder.parent / "few"
        few.mkdir()
        for number in range(4):
            (few / f"{number}.txt").write_text(f"{number} cat")
        prepare(DataConfig.parse(_data(few)), folder.parent / _FEW)

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        run = case / "run"
        shutil.copytree(valid / "run", run, copy_function=_linked)
        for _ in range(rng.choice([1, 1, 1, 2])):
            # A file that is gone or empty has nothing left to spoil.
            with suppress(FileNotFoundError, ValueError):
                self._spoil(rng, run)

    def _spoil(self, rng: Random, run: Path) -> None:
        match rng.randrange(10):
            case 0 | 1 | 2:
                path = run / rng.choice(_JSON)
                _write(path, _spoilt_text(rng, path.read_bytes()))
            case 3 | 4 | 5:
                path = run / rng.choice(_LINES)
                lines = path.read_bytes().splitlines(keepends=True)
                at = rng.randrange(len(lines))
                lines[at] = _spoilt_text(rng, lines[at]) + b"\n"
                _write(path, b"".join(lines))
            case 6:
                path = run / "recipe.yaml"
                tree = plain_yaml((run.parents[1] / "valid/run/recipe.yaml").read_bytes())
                _write(path, json_text(spoilt_tree(rng, tree), rng).encode())
            case 7:
                path = run / _CHECKPOINT / rng.choice(_TENSORS)
                _write(path, spoilt_bytes(rng, path.read_bytes()))
            case 8:
                path = run / rng.choice([*_JSON, *_LINES, "recipe.yaml"])
                _write(path, spoilt_bytes(rng, path.read_bytes()))
            case _:
                path = run / rng.choice([*_JSON, *_LINES, "recipe.yaml", _CHECKPOINT])
                if path.exists():
                    path.rename(path.with_name(rng.choice(["step-99999999", "gone", "step-1" * 9])))

    def parse(self, case: Path) -> None:
        run = case / "run"
        plain_yaml((run / "recipe.yaml").read_bytes())
        for name in _JSON:
            json.loads((run / name).read_bytes())
        for name in _LINES:
            for line in (run / name).read_bytes().splitlines():
                json.loads(line)

    def read(self, case: Path) -> None:
        from mixtura.checkpoints.inspection import inspect_model
        from mixtura.checkpoints.loaded_run import load_run
        from mixtura.data import Corpus
        from mixtura.insight import Subject
        from mixtura.insight.page import embedded
        from mixtura.insight.report import report_data
        from mixtura.runs.checkpoint import read
        from mixtura.runs.folder import RunFolder
        from mixtura.runs.journal import cut, read_journal
        from mixtura.train.environment import changes

        run = case / "run"
        parsed_once()
        inspect_model(run)
        # As generate reads it, then as a report does, then as --resume does.
        loaded = load_run(run)
        continued(loaded.decoder, loaded.tokenizer, run, tokens=1)
        (few,) = (case.parent / _FEW).iterdir()
        subject = Subject(loaded.decoder, Corpus.open(few), loaded.step)
        embedded(report_data(run, None, lambda _: subject))
        folder = RunFolder(run)
        newest = folder.checkpoints().newest()
        assert newest is not None, "load_run has found it"
        folder.checkpoints().attempt(newest, read)
        for log in (folder.log, folder.evaluations):
            cut(log, 2)
            read_journal(log)
        changes(folder.write_environment({"threads": 1}), {"threads": 1})


def _recipe(text: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {
            "layers": 2,
            "width": 16,
            "context": 32,
            "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
            "moe": {"num_experts": 4, "top_k": 2, "expert_width": 8},
        },
        "data": _data(text),
        "train": {
            "steps": 4,
            "batch": 2,
            "length": 16,
            "eval_every": 2,
            "eval_tokens": 64,
            "log_every": 1,
            "tensorboard": False,
            "threads": 1,
        },
    }


def _data(text: Path) -> dict[str, Any]:
    return {"source": {"kind": "text", "paths": [str(text)]}, "heldout": 0.4}


def _spoilt_text(rng: Random, data: bytes) -> bytes:
    """JSON with changes in its tree; of what is none any more, in its bytes."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return spoilt_bytes(rng, data)
    return json_text(spoilt_tree(rng, tree), rng).encode()


def _linked(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _write(path: Path, data: bytes) -> None:
    """A file of its own; the one there is the valid one, linked."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        path.write_bytes(data)


KINDS = [Runs()]
