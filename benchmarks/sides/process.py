"""A side's process as the one that asks it sees it, and what else kept the processor busy.

Linux alone: it reads /proc.
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
# Threads of the side asked before may spin a little longer.
_SETTLING = 0.1
_LONGEST = 1800.0
_KIB = 1024


class NotInstalledError(Exception):
    """A side whose packages are not there."""


class AbortedError(Exception):
    """A side whose process ended where an answer was due; says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a side said, and the cores that others kept busy meanwhile."""

    value: Any
    elsewhere: float


class Worker:
    """One side, which computes when it is asked and only then."""

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
        """Raises AbortedError where the process ends instead.

        Where it is urgent, its threads come before those of any other program until it answers.
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
        """Cores that it kept busy while it was not asked anything; 0 if it only ever waited."""
        self._count_idleness()
        return self._idle_cpu / max(self._idle_wall, 1e-9)

    def memory(self) -> dict[str, int]:
        """Bytes that are resident: all of them, and those that are no page of a file."""
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
        """Of every thread that there is; those to come have that of the one that starts them."""
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            # It may have ended meanwhile.
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
        # llama.cpp would start a debugger where it aborts.
        "GGML_NO_BACKTRACE": "1",
        "LLAMA_NO_BACKTRACE": "1",
    }


def _cpu_seconds(process: int) -> float:
    """Of all its threads; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def busy_seconds() -> float:
    """Of all processors, what hypervisors gave to others included."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, *others = fields
    return (user + nice + system + sum(others)) / _TICKS


def available_bytes() -> int:
    """Memory that programs may still take, the page cache counted as free."""
    text = Path("/proc/meminfo").read_text()
    return next(
        int(line.split()[1]) * _KIB
        for line in text.splitlines()
        if line.startswith("MemAvailable:")
    )
