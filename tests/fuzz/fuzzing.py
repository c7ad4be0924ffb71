"""Runs a kind's cases in processes that may hang, crash or fill their memory, and counts them."""

import importlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.fuzz import worker
from tests.fuzz.kind import Kind
from tests.fuzz.worker import VALID, Outcome

_FOLDER = Path(__file__).parent
# One process imports what is slow to import, and every worker is a fork of it.
_PRELOADED = [
    "worker",
    "mixtura.checkpoints.open_model",
    "mixtura.engine.conversation",
    "yaml",
    "gguf",
]
_PREPARE_SECONDS = 300
_MOST_BUGS = 20


@dataclass
class Tally:
    """What became of all cases of a kind."""

    kind: str
    verdicts: Counter[str] = field(default_factory=Counter)
    past_first_parse: int = 0
    slowest: Outcome | None = None
    largest: Outcome | None = None
    bugs: dict[str, Outcome] = field(default_factory=dict)
    """the first case of each, by the exception and where it was raised"""
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.verdicts[outcome.verdict] += 1
        self.past_first_parse += outcome.past_first_parse
        if self.slowest is None or outcome.seconds > self.slowest.seconds:
            self.slowest = outcome
        if self.largest is None or outcome.memory > self.largest.memory:
            self.largest = outcome
        if outcome.verdict == "bug":
            self.bugs.setdefault(_origin(outcome.said), outcome)

    @property
    def cases(self) -> int:
        return self.verdicts.total()

    def __str__(self) -> str:
        """One line of figures, and each bug with its seed."""
        line = f"{self.kind}: {self.cases:,} cases in {self.seconds:.0f} s"
        for verdict in ("accepted", "refused", "bug"):
            line += f", {self.verdicts[verdict]:,} {verdict}"
        line += f"; {self.past_first_parse / max(self.cases, 1):.0%} past the first parse"
        if self.slowest is not None and self.largest is not None:
            line += f"; slowest {self.slowest.seconds:.2f} s (seed {self.slowest.seed})"
            line += f"; most memory {self.largest.memory >> 20} MiB (seed {self.largest.seed})"
        shown = [
            f"seed {bug.seed} (python tests/fuzz {self.kind} --seed {bug.seed}):\n{bug.said}"
            for bug in self.bugs.values()
        ]
        return "\n\n".join([line, *shown])


def _origin(said: str) -> str:
    """Of a traceback its last place and its exception, else all of it."""
    # The stack of a lost worker has the newest call first, and no exception.
    lines = said.splitlines() if "Traceback (most" in said else []
    places = [line for line in lines if line.lstrip().startswith('File "')]
    return f"{places[-1]} {lines[-1].partition(':')[0]}" if places else said


def all_kinds() -> dict[str, Kind]:
    """By name, from every module of `kinds/`."""
    names = sorted(path.stem for path in (_FOLDER / "kinds").glob("*.py"))
    modules = [importlib.import_module(f"tests.fuzz.kinds.{name}") for name in names]
    return {kind.name: kind for module in modules for kind in module.KINDS}


def fuzz(kind: Kind, seeds: Sequence[int], folder: Path) -> Tally:
    """Read the case of each seed; `folder` is empty, and keeps the last case.

    Stops early once there are twenty different bugs, or twenty workers were lost. Raises
    AssertionError where the valid file cannot be made, or is not accepted.
    """
    begin, tally = time.monotonic(), Tally(kind.name)
    _prepare(kind, folder)
    left, workers = seeds, 0
    while left and len(tally.bugs) < _MOST_BUGS and workers < _MOST_BUGS:
        left, workers = _one_worker(kind, left, folder, tally), workers + 1
    tally.seconds = time.monotonic() - begin
    return tally


def _prepare(kind: Kind, folder: Path) -> None:
    process = _context().Process(target=worker.prepare, args=(kind, folder / "valid"))
    process.start()
    process.join(_PREPARE_SECONDS)
    _end(process)
    assert process.exitcode == 0, f"{kind.name}: its valid file cannot be made"


def _one_worker(kind: Kind, seeds: Sequence[int], folder: Path, tally: Tally) -> Sequence[int]:
    """Run cases until all are done or the worker is lost; gives the seeds that are left."""
    receiver, sender = _context().Pipe(duplex=False)
    process = _context().Process(target=worker.work, args=(kind, folder, seeds, sender))
    process.start()
    sender.close()
    try:
        # The first result takes the start of the process, and imports, too.
        first = _received(receiver, process, folder, VALID, _PREPARE_SECONDS)
        assert first.verdict == "accepted", f"{kind.name}: the valid file: {first.said}"
        for done, seed in enumerate(seeds, start=1):
            # Making the case is part of the wait, though not of the case's own time.
            outcome = _received(receiver, process, folder, seed, kind.seconds + 1)
            tally.add(outcome)
            if process.exitcode is not None or len(tally.bugs) >= _MOST_BUGS:
                return seeds[done:]
    finally:
        receiver.close()
        _end(process)
    return seeds[len(seeds) :]


def _received(
    receiver: Any, process: BaseProcess, folder: Path, seed: int, seconds: float
) -> Outcome:
    """The worker's own word, or ours of a worker that is lost, which is ended.

    Other work on the machine is not the case's fault: it may take four times as long as its share
    of a processor.
    """
    assert process.pid is not None, "it was started"
    begin, used = time.monotonic(), _processor_seconds(process.pid)
    busy, passed, ready = 0.0, 0.0, False
    while not ready and busy <= seconds and passed <= 4 * seconds:
        ready = receiver.poll(seconds / 4)
        busy, passed = _processor_seconds(process.pid) - used, time.monotonic() - begin
    if ready:
        try:
            return receiver.recv()
        except EOFError:
            process.join()
            what = f"the process ended with {process.exitcode}"
    else:
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        _end(process)
        what = f"took {passed:.0f} s, and {busy:.0f} s of a processor"
    stack = (folder / "stack").read_text(encoding="utf-8", errors="replace")[:3000]
    noise = (folder / "noise").read_text(encoding="utf-8", errors="replace")[:1000]
    said = f"{what}\n{stack}\n{noise}"
    return Outcome(seed, "bug", False, time.monotonic() - begin, 0, said)


def _processor_seconds(process: int) -> float:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    # User and system time are fields 14 and 15; the name before them may hold spaces.
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.kill()
    process.join()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context.set_forkserver_preload(_PRELOADED)
    return context
