"""Runs a side in a process, and measures how busy other programs kept the processor.

This works only on Linux, since it reads /proc.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sides.side import Setting
from sides.worker import IMPORTS_MISSING, setting_as_text

_TICKS = os.sysconf("SC_CLK_TCK")
# Threads of the side that was measured before may spin for some time.
_SETTLING = 0.1
_LONGEST = 1800.0
_KIB = 1024


class NotInstalledError(Exception):
    """The packages of a side are not installed."""


class AbortedError(Exception):
    """The process of a side ended before it answered; the message says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a side, and the number of cores that other programs kept busy meanwhile."""

    value: Any
    elsewhere: float


class Worker:
    """The process of one side. It computes only during `ask`."""

    def __init__(
        self,
        name: str,
        setting: Setting,
        logs: Path,
        *,
        urgent: bool,
        python: Path = Path(sys.executable),
        folder: Path | None = None,
    ) -> None:
        """`folder` is the benchmarks/ of another checkout, whose `python` runs the side."""
        self.name, self._urgent = name, urgent
        self._log = logs / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "sides.worker", name, setting_as_text(setting)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(setting.threads),
                cwd=folder,
            )
        self._idle_since = self._moment()
        self._idle_cpu = self._idle_wall = 0.0
        self.about = self._hear()
        self._idle_since = self._moment()

    def ask(self, do: str, *values: object) -> Answer:
        """Call the side's method `do`. Raises AbortedError if the process ends before it answers.

        With `urgent` its threads have real-time priority until it answers.
        """
        time.sleep(_SETTLING)
        self._count_idleness()
        began, own, busy = self._moment(), time.process_time(), busy_seconds()
        if self._urgent:
            self._schedule(os.SCHED_FIFO, 1)
        self._put({"do": do, "with": values})
        value = self._hear()
        if self._urgent:
            self._schedule(os.SCHED_OTHER, 0)
        ended = self._moment()
        spent = ended.cpu - began.cpu + time.process_time() - own
        wall = max(ended.wall - began.wall, 1e-3)
        self._idle_since = ended
        return Answer(value, max(0.0, (busy_seconds() - busy - spent) / wall))

    def idle_cores(self) -> float:
        """Cores that the side kept busy while it should wait; 0 if it only waited."""
        self._count_idleness()
        return self._idle_cpu / max(self._idle_wall, 1e-9)

    def memory(self) -> dict[str, int]:
        """Resident bytes: all of them, and the anonymous ones, which are not pages of a file."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        sizes = dict(line.split()[:2] for line in text.splitlines()[1:])
        return {
            "resident": int(sizes["Rss:"]) * _KIB,
            "anonymous": int(sizes["Anonymous:"]) * _KIB,
        }

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _schedule(self, policy: int, priority: int) -> None:
        """Set the scheduling of every thread. A new thread inherits that of its parent thread."""
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            # The thread may have ended meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))

    def _put(self, command: object) -> None:
        pipe: IO[str] = self._process.stdin  # pyright: ignore[reportAssignmentType]
        try:
            pipe.write(json.dumps(command) + "\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._aborted() from None

    def _hear(self) -> Any:
        line = self._process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if line:
            return json.loads(line)
        raise self._aborted()

    def _aborted(self) -> Exception:
        status = self._process.wait(_LONGEST)
        said = self._log.read_text(errors="replace").strip().splitlines()
        last = said[-1][:200] if said else "nothing on stderr"
        if status == IMPORTS_MISSING:
            return NotInstalledError(last)
        return AbortedError(f"ended with status {status}: {last}")

    def _moment(self) -> "_Moment":
        return _Moment(time.perf_counter(), _cpu_seconds(self._process.pid))

    def _count_idleness(self) -> None:
        now = self._moment()
        self._idle_cpu += now.cpu - self._idle_since.cpu
        self._idle_wall += now.wall - self._idle_since.wall
        self._idle_since = now


@dataclass(frozen=True, slots=True)
class _Moment:
    wall: float
    cpu: float


def _environment(threads: int) -> dict[str, str]:
    here = str(Path(__file__).parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        # Otherwise llama.cpp starts a debugger when it aborts.
        "GGML_NO_BACKTRACE": "1",
        "LLAMA_NO_BACKTRACE": "1",
    }


def _cpu_seconds(process: int) -> float:
    """CPU seconds of all threads of a process; 0 if the process has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def busy_seconds() -> float:
    """Busy seconds of all processors, including time that a hypervisor gave to other machines."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, *others = fields
    return (user + nice + system + sum(others)) / _TICKS


def available_bytes() -> int:
    """Memory that programs can still use; the page cache counts as free."""
    text = Path("/proc/meminfo").read_text()
    return next(
        int(line.split()[1]) * _KIB
        for line in text.splitlines()
        if line.startswith("MemAvailable:")
    )
