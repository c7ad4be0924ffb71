"""Compare two checkouts of Mixtura, to find whether a change made anything slower.

    git clone . ../old; git -C ../old checkout COMMIT; make -C ../old setup
    python benchmarks/versions.py ../old --pairs 30 --out benchmarks/results/versions.json

Each side is a process of one checkout, with the checkout's .venv. The process waits on a pipe, so
only one side computes at a time. In each pair both sides do the same work, and the side that begins
alternates. The work is prefill of 512 tokens and decode of 32 steps of one sequence and of 16, at
OLMoE's shape; three training steps at the shape of benchmarks/training.py; and `mixtura --help`. A
ratio is the old side's time divided by the new side's time in the same pair, so 1.02 means that the
new side is two percent faster. Each line has the median ratio with its 95% interval (bootstrap of
the median, 10,000 samples). The last line is one JSON object.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sides.gguf_file import gguf_file
from sides.process import Worker
from sides.shapes import SHAPES
from sides.side import SLOTS, Setting, packed_folder, prompts

HERE = Path(__file__).parents[1]
DRAWS = 10_000
Timed = Callable[[], float]
Pairs = list[tuple[float, float]]

# A program that runs in a checkout's benchmarks/ folder. For each line of input it takes three
# training steps and prints their seconds.
TRAINING = """
import sys, time, torch
from training import decoder_config, ours
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
step = ours(decoder_config(64, 8))
for _ in range(10):
    step()
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(3):
        step()
    print(time.perf_counter() - began, flush=True)
"""


def python_of(checkout: Path) -> Path:
    return checkout / ".venv" / "bin" / "python"


@contextmanager
def engines(checkouts: Mapping[str, Path], options: argparse.Namespace) -> Iterator[Any]:
    """The engine processes of both sides, with the model loaded and all its weights read once."""
    with tempfile.TemporaryDirectory() as temporary:
        shape = SHAPES["olmoe"].of_depth(options.layers)
        path = gguf_file(shape, options.work or Path(temporary))
        out = packed_folder(path)
        if not out.exists():
            command = [python_of(HERE), "-m", "mixtura", "pack", str(path), str(out)]
            subprocess.run(command, check=True, capture_output=True)
        setting = Setting(path, shape, options.threads)
        workers: dict[str, Worker] = {}
        try:
            for name, checkout in checkouts.items():
                logs = Path(temporary) / name
                logs.mkdir()
                workers[name] = Worker(
                    "mixtura",
                    setting,
                    logs,
                    urgent=options.urgent,
                    python=python_of(checkout),
                    folder=checkout / "benchmarks",
                )
                workers[name].ask("load")
                workers[name].ask("settle")
            yield workers
        finally:
            for worker in workers.values():
                worker.stop()


def engine_work(workers: Mapping[str, Worker], vocabulary: int, seed: int) -> dict[str, Any]:
    """For each kind of work, a timed function of each side; the prompts depend on the seed."""
    long = prompts(1, 512, vocabulary, seed)[0]
    one, many = prompts(1, 64, vocabulary, seed), prompts(SLOTS, 16, vocabulary, seed)

    def asked(do: str, *values: object) -> dict[str, Timed]:
        return {
            name: lambda worker=worker: float(worker.ask(do, *values).value["result"])
            for name, worker in workers.items()
        }

    return {
        "prefill, 512 tokens": asked("prefill", "batch", long),
        "decode, one sequence": asked("decode", "batch", one, 32),
        "decode, 16 sequences": asked("decode", "batch", many, 32),
    }


class Trainer:
    """A side's training process; a call takes three steps and returns their seconds."""

    def __init__(self, checkout: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [python_of(checkout), "-c", TRAINING, str(threads)],
            cwd=checkout / "benchmarks",
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None, "it is a pipe"
        assert self._process.stdout is not None, "it is a pipe"
        self._to, self._from = self._process.stdin, self._process.stdout
        self._hear()

    def __call__(self) -> float:
        self._to.write("step\n")
        self._to.flush()
        return float(self._hear())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _hear(self) -> str:
        line = self._from.readline().strip()
        if not line:
            raise RuntimeError("a training process ended; its own output says why")
        return line


def start(checkout: Path) -> float:
    """Seconds of `mixtura --help`."""
    began = time.perf_counter()
    command = [python_of(checkout).with_name("mixtura"), "--help"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def paired(sides: Mapping[str, Timed], number: int) -> tuple[float, float]:
    """Seconds of the old and of the new side; the side that begins alternates with `number`."""
    order = ["old", "new"] if number % 2 else ["new", "old"]
    seconds = {name: sides[name]() for name in order}
    return seconds["old"], seconds["new"]


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95% interval of the median of ratios."""
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    return medians[DRAWS // 40], medians[-DRAWS // 40]


def row(name: str, pairs: Pairs) -> dict[str, Any]:
    ratios = [old / new for old, new in pairs]
    low, high = interval(ratios)
    median = statistics.median(ratios)
    print(f"{name:<24} {median:.3f}  [{low:.3f}, {high:.3f}]  {len(pairs)} pairs", flush=True)
    return {
        "work": name,
        "pairs": len(pairs),
        "old_over_new": round(median, 4),
        "interval": [round(low, 4), round(high, 4)],
        "old_seconds": round(statistics.median(old for old, _ in pairs), 5),
        "new_seconds": round(statistics.median(new for _, new in pairs), 5),
    }


def engine_rows(checkouts: Mapping[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    found: dict[str, Pairs] = {}
    with engines(checkouts, options) as workers:
        vocabulary = SHAPES["olmoe"].of_depth(options.layers).vocabulary
        # The first round is not counted, since caches and memory pages are cold.
        for number in range(options.pairs + 1):
            for name, sides in engine_work(workers, vocabulary, number).items():
                pair = paired(sides, number)
                if number:
                    found.setdefault(name, []).append(pair)
    return [row(name, pairs) for name, pairs in found.items()]


def training_row(checkouts: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    sides = {name: Trainer(checkout, options.threads) for name, checkout in checkouts.items()}
    try:
        pairs = [paired(sides, number) for number in range(options.pairs)]
    finally:
        for side in sides.values():
            side.stop()
    return row("training, three steps", pairs)


def start_row(checkouts: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    sides = {name: lambda of=checkout: start(of) for name, checkout in checkouts.items()}
    pairs = [paired(sides, number) for number in range(-1, options.pairs)]
    return row("mixtura --help", pairs[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="a checkout that `make setup` has prepared")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--layers", type=int, default=4, help="of OLMoE's shape, which has 16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["engine", "training", "start"], action="append")
    parser.add_argument("--urgent", action="store_true", help="real-time priority (root)")
    parser.add_argument("--work", type=Path, help="folder that keeps the model; else a new one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    checkouts = {"old": options.old.resolve(), "new": HERE}
    for checkout in checkouts.values():
        if not python_of(checkout).exists():
            parser.error(f"{checkout}: has no .venv; run `make setup` there")
    wanted = options.only or ["engine", "training", "start"]
    rows: list[dict[str, Any]] = []
    print("old time over new: median, 95% interval", flush=True)
    if "engine" in wanted:
        rows += engine_rows(checkouts, options)
    if "training" in wanted:
        rows.append(training_row(checkouts, options))
    if "start" in wanted:
        rows.append(start_row(checkouts, options))
    commits = {name: commit_of(checkout) for name, checkout in checkouts.items()}
    result = {"benchmark": "versions", "commits": commits, "layers": options.layers, "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
