"""Measures one shape on several sides in turn; the limit is read before and after each side."""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sides.process import AbortedError, Answer, NotInstalledError, Worker, available_bytes
from sides.shapes import BITS_OF_Q4_0
from sides.side import CAPACITY, SLOTS, Setting, packed_folder, prompts

OURS, LIMITS = "mixtura", "limits"
PEERS = ("llama.cpp", "ik_llama.cpp", "transformers")
# Sides with several variants: side -> {label of the result's row: the side's name of the variant}.
VARIANTS = {
    "transformers": {"transformers eager": "eager", "transformers grouped_mm": "grouped_mm"},
    OURS: {OURS: "batch", f"{OURS}, steps alone": "steps"},
}
BITS = {"transformers": 16.0}
# How many times a side has the weights in memory. llama.cpp keeps the file's pages beside weights
# that it has repacked.
HELD = {"llama.cpp": 2}
QUIET = 0.1
PEAK_SECONDS = 0.1
READ_BYTES = 6e9
# Bytes that a process needs beside weights and cache, for libraries and buffers. The process of the
# limits reads a buffer of a gigabyte.
BESIDE, OF_LIMITS = 300 << 20, 1300 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table."""

    name: str
    sequences: int
    prompt: int
    steps: int
    """0: the time of the prompt is measured"""
    often: int = 1
    """measurements in each round"""

    @property
    def tokens(self) -> int:
        return self.sequences * (self.steps or self.prompt)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, with the mean of the limits before and after it.

    The rate is in tokens per second; limits are in GB or 1e9 multiply-adds per second.
    """

    rate: float
    limits: dict[str, float]
    elsewhere: float


def works(steps: int) -> list[Work]:
    return [
        Work("prefill, 512 tokens", 1, 512, 0),
        # Three measurements take a second or two, during which the speed of memory is constant.
        Work("decode, one sequence", 1, 64, steps, often=3),
        Work("decode, 16 sequences", SLOTS, 16, steps),
    ]


class Bench:
    """Measures one shape on the selected sides."""

    def __init__(self, setting: Setting, options: argparse.Namespace, logs: Path) -> None:
        self.setting, self.options, self.logs = setting, options, logs
        self.about: dict[str, dict[str, str]] = {}
        self.loading: dict[str, dict[str, Any]] = {}
        self.resident: dict[str, dict[str, int]] = {}
        self.failures: dict[str, str] = {}
        self.idle: dict[str, float] = {}

    def phases(self) -> list[list[str]]:
        """The sides of each phase: Mixtura, and as many peers as fit into memory beside it."""
        left = available_bytes() - OF_LIMITS - self._room(OURS)
        found: list[list[str]] = []
        free = 0.0
        for peer in self.options.only:
            if peer == OURS:
                continue
            room = self._room(peer)
            if not found or room > free:
                found.append([])
                free = left
            found[-1].append(peer)
            free -= room
        ours = [OURS] if OURS in self.options.only else []
        return [[*peers, *ours] for peers in found] or [ours]

    def run(self) -> dict[str, Any]:
        phases = []
        for names in self.phases():
            with self._workers(names) as workers:
                phases.append(self._phase(workers))
        shape = self.setting.shape
        return {
            "shape": asdict(shape),
            "weights": shape.weights,
            "file_bytes": self.setting.path.stat().st_size,
            "rounds": self.options.rounds,
            "steps": self.options.steps,
            "urgent": self.options.urgent,
            "sides": self.about,
            "phases": phases,
            "summary": summary(phases),
            "loading": self.loading,
            "cache_bytes": self._cache_bytes,
            "resident_bytes": self.resident,
            "idle_cores": self.idle,
            "failures": self.failures,
        }

    @property
    def _cache_bytes(self) -> int:
        return self.setting.shape.cache_bytes * SLOTS * CAPACITY

    def _room(self, name: str) -> float:
        weights = self.setting.shape.weights * BITS.get(name, BITS_OF_Q4_0) / 8
        return HELD.get(name, 1) * weights + self._cache_bytes + BESIDE

    @contextmanager
    def _workers(self, names: Sequence[str]) -> Iterator[dict[str, Worker]]:
        workers: dict[str, Worker] = {}
        try:
            for name in [LIMITS, *names]:
                worker = self._loaded(name)
                if worker is not None:
                    workers[name] = worker
            yield workers
        finally:
            for worker in workers.values():
                worker.stop()

    def _loaded(self, name: str) -> Worker | None:
        """A process that has loaded its model; None if that fails.

        A new process is started for each measurement of the load, and the last one is returned.
        """
        taken: list[float] = []
        first = None
        for left in reversed(range(1 if name == LIMITS else self.options.loads)):
            worker = self._started(name)
            if worker is None:
                return None
            try:
                answer = worker.ask("load")
            except AbortedError as error:
                self._fail(name, "load", error)
                return None
            taken.append(answer.value["seconds"])
            first = answer.value["result"]
            if not left:
                break
            worker.stop()
        if name != LIMITS:
            seconds = statistics.median(taken)
            self.loading[name] = {"seconds": seconds, "all": taken, "first_token": first}
            print(f"  {name}: first token after {seconds:.2f} s", flush=True)
        if name == OURS:
            worker.ask("settle")
        return worker

    def _started(self, name: str) -> Worker | None:
        try:
            if name == OURS:
                self._pack()
            worker = Worker(name, self.setting, self.logs, urgent=self.options.urgent)
        except (NotInstalledError, AbortedError) as error:
            self._fail(name, "start", error)
            return None
        self.about[name] = worker.about
        return worker

    def _pack(self) -> None:
        """Pack the model, if it is not packed yet. Raises AbortedError if packing fails."""
        source = self.setting.path
        out = packed_folder(source)
        if out.exists():
            return
        print(f"  {OURS}: packing", flush=True)
        command = [sys.executable, "-m", "mixtura", "pack", str(source), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AbortedError(done.stderr.strip().splitlines()[-1])

    def _phase(self, workers: dict[str, Worker]) -> dict[str, Any]:
        rows = [self._measure(work, workers) for work in works(self.options.steps)]
        for name, worker in workers.items():
            self.idle[name] = worker.idle_cores()
            if name != LIMITS:
                self.resident[name] = worker.memory()
        return {"sides": [name for name in workers if name != LIMITS], "work": rows}

    def _measure(self, work: Work, workers: dict[str, Worker]) -> dict[str, Any]:
        print(f"\n{work.name}", flush=True)
        samples: dict[str, list[Sample]] = {}
        limit = workers[LIMITS]
        for number in range(1 + work.often * self.options.rounds):
            before = self._limit(work, limit)
            for label in self._labels(work, workers):
                answer = self._take(work, workers, label, number)
                if answer is None:
                    continue
                after = self._limit(work, limit)
                both = {key: (before[key] + after[key]) / 2 for key in before}
                before = after
                rate = work.tokens / answer.value["result"]
                samples.setdefault(label, []).append(Sample(rate, both, answer.elsewhere))
        # The first measurement is not counted: it creates kernels, buffers and caches.
        return self._row(work, {label: found[1:] for label, found in samples.items()})

    def _labels(self, work: Work, workers: dict[str, Worker]) -> Iterator[str]:
        """Labels of the rows to measure, without rows whose side aborted at this work."""
        for name in [name for name in workers if name != LIMITS]:
            for label in VARIANTS.get(name, {name: ""}):
                if name in workers and f"{label}, {work.name}" not in self.failures:
                    yield label

    def _take(self, work: Work, workers: dict[str, Worker], label: str, seed: int) -> Answer | None:
        """The least disturbed of several measurements.

        None if the side aborts; the side is then started again.
        """
        name = side_of(label)
        variant = VARIANTS.get(name, {label: ""})[label]
        given = prompts(work.sequences, work.prompt, self.setting.shape.vocabulary, seed)
        best: Answer | None = None
        for _ in range(1 + self.options.patience):
            try:
                if work.steps:
                    answer = workers[name].ask("decode", variant, given, work.steps)
                else:
                    answer = workers[name].ask("prefill", variant, given[0])
            except AbortedError as error:
                self._fail(label, work.name, error)
                del workers[name]
                again = self._loaded(name)
                if again is not None:
                    workers[name] = again
                return None
            if best is None or answer.elsewhere < best.elsewhere:
                best = answer
            if best.elsewhere <= QUIET:
                break
        return best

    def _limit(self, work: Work, limit: Worker) -> dict[str, float]:
        if not work.steps:
            return limit.ask("peaks", PEAK_SECONDS).value["result"]
        count = int(READ_BYTES)
        return {"raw reads": count / limit.ask("read", count).value["result"] / 1e9}

    def _row(self, work: Work, samples: dict[str, list[Sample]]) -> dict[str, Any]:
        shape = self.setting.shape
        row: dict[str, Any] = {"what": work.name, "tokens": work.tokens, "sides": {}}
        for label, found in samples.items():
            name = side_of(label)
            if work.steps:
                # Gigabytes that a token needs: those of a step, divided by its tokens.
                needed = shape.step_bytes(work.sequences, BITS.get(name, BITS_OF_Q4_0))
                needed = needed / work.sequences / 1e9
            else:
                needed = shape.prefill_macs(work.prompt) / work.tokens / 1e9
            ratios = {
                key: statistics.median(one.rate * needed / one.limits[key] for one in found)
                for key in found[0].limits
            }
            row["sides"][label] = {
                "tokens_per_second": statistics.median(one.rate for one in found),
                "all": [one.rate for one in found],
                "of_limit": ratios,
                "limits": {
                    key: statistics.median(one.limits[key] for one in found) for key in ratios
                },
                "elsewhere": [round(one.elsewhere, 2) for one in found],
            }
        report(row)
        return row

    def _fail(self, name: str, what: str, error: Exception) -> None:
        self.failures[f"{name}, {what}"] = str(error)
        print(f"  {name}: {what}: {error}", flush=True)


def side_of(label: str) -> str:
    """The side of a row, given the row's label."""
    return next((name for name, labels in VARIANTS.items() if label in labels), label)


def report(row: dict[str, Any]) -> None:
    for label, side in row["sides"].items():
        of_limit = ", ".join(f"{ratio:.2f} of {key}" for key, ratio in side["of_limit"].items())
        disturbed = sum(one > QUIET for one in side["elsewhere"])
        remark = f"  ({disturbed} of {len(side['all'])} disturbed)" if disturbed else ""
        print(f"  {label:<24}{side['tokens_per_second']:9.2f} tokens/s  {of_limit}{remark}")


def summary(phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each work the best peer, and Mixtura's rate divided by each peer's in the same phase."""
    found = []
    for index, first in enumerate(phases[0]["work"]):
        ratios: dict[str, float | None] = {}
        rates: dict[str, float] = {}
        for phase in phases:
            sides = phase["work"][index]["sides"]
            ours = sides.get(OURS)
            for label, side in sides.items():
                if side_of(label) != OURS:
                    rates[label] = side["tokens_per_second"]
                    ratios[label] = ours and ours["tokens_per_second"] / rates[label]
        best = max(rates, key=rates.__getitem__, default=None)
        known = [ratio for ratio in ratios.values() if ratio is not None]
        found.append(
            {
                "what": first["what"],
                "best_peer": best,
                "ratio": min(known, default=None),
                "ratios": ratios,
            }
        )
    return found
