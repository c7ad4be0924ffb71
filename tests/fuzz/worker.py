"""Runs cases one after another in a process of its own, and says how each ended."""

import faulthandler
import os
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Literal

from tests.fuzz.kind import Kind

from mixtura.errors import MixturaError, UnexpectedError, memory_ran_out
from mixtura.terminal_text import one_line

MEMORY = 1 << 30
"""bytes that a case may take beyond the valid file"""
VALID = -1
"""the number of the case that is the valid file itself"""
_DESCRIPTORS = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case ended."""

    seed: int
    verdict: Literal["accepted", "refused", "bug"]
    past_first_parse: bool
    seconds: float
    memory: int
    """bytes at the peak, over what the process held before"""
    said: str = ""
    """the line of a refusal; of a bug, what happened, with its traceback"""


def prepare(kind: Kind, valid: Path) -> None:
    """Write the kind's valid files."""
    valid.mkdir()
    kind.make_valid(valid)


def work(kind: Kind, folder: Path, seeds: Iterable[int], results: Connection) -> None:
    """Read the valid files, then the case of each seed, and send an Outcome for each."""
    noise = os.open(folder / "noise", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(noise, stream)
    with (folder / "stack").open("w") as stack:
        # The runner asks for the stack of a case that takes too long; a crash leaves one as well.
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
        results.send(run_case(kind, folder, VALID, noise))
        # On what the valid file had: its size in addresses, which no allocation gets past.
        limit = _status("VmPeak") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        # The valid case has imported what is imported when it is needed, with its own warnings.
        warnings.simplefilter("error")
        for seed in seeds:
            results.send(run_case(kind, folder, seed, noise))


def run_case(kind: Kind, folder: Path, seed: int, noise: int) -> Outcome:
    case, valid = folder / "case", folder / "valid"
    _empty(case)
    if seed == VALID:
        shutil.copytree(valid, case, dirs_exist_ok=True)
    else:
        kind.mutate(Random(f"{kind.name} {seed}"), valid, case)
    try:
        kind.parse(case)
        past = True
    except Exception:
        past = False
    # The peak starts anew.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, begin = _status("VmRSS"), time.perf_counter()
    verdict, said = "accepted", ""
    try:
        kind.read(case)
    except BaseException as error:
        verdict, said = _judged(error, case)
    seconds, memory = time.perf_counter() - begin, max(0, _status("VmHWM") - before)
    if os.lseek(noise, 0, os.SEEK_END):
        written = os.pread(noise, 1000, 0).decode("utf-8", "replace")
        verdict, said = "bug", f"wrote to the terminal: {written}\n{said}"
        os.ftruncate(noise, 0)
    return Outcome(seed, verdict, past, seconds, memory, said)


def _judged(error: BaseException, case: Path) -> tuple[Literal["refused", "bug"], str]:
    """A refusal is a MixturaError that names a file of the case, and no memory ran out for it."""
    if not isinstance(error, MixturaError) or isinstance(error, UnexpectedError):
        return "bug", _traceback(error)
    line = one_line(str(error))
    if _for_want_of_memory(error):
        return "bug", f"ran out of memory before it said: {line}\n{_traceback(error)}"
    names = {case.name, *(path.name for path in case.rglob("*"))}
    if not any(one_line(name) in line for name in names):
        return "bug", f"names no file: {line}\n{_traceback(error)}"
    return "refused", line


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]


def _for_want_of_memory(error: BaseException | None) -> bool:
    while error is not None and not memory_ran_out(error):
        error = error.__cause__ or error.__context__
    return error is not None


def _empty(folder: Path) -> None:
    """As rmtree, and quicker: most cases are a few files."""
    folder.mkdir(exist_ok=True)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()


def _status(key: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    with Path("/proc/self/status").open("rb") as opened:
        for line in opened:
            if line.startswith(key.encode()):
                return int(line.split()[1]) * 1024
    raise AssertionError(key)
