"""Compares files with the SHA-256 digests that were recorded when the files were written.

The comparison runs in a background thread while the model is already in use: mapping a file takes
milliseconds, but reading all its bytes takes seconds.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from mixtura.errors import CheckpointError

T = TypeVar("T")

_CHUNK = 1 << 20
_MOST_THREADS = 8
_LOWEST_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class Claim:
    """The recorded digest of some bytes of a file, to be compared with the file."""

    file: Path
    what: str
    """a name of the bytes for messages, such as "blocks.0.norm.weight (norm)" """
    sha256: str
    found: Callable[[], str]
    """reads the bytes from the file and returns their digest"""


def named(name: str, role: str | None, expert: int | None = None) -> str:
    """A tensor's name for messages: "blocks.0.ffn.experts, expert 3 (expert)".

    `role` is the part of the model that the tensor belongs to; messages show it in parentheses.
    """
    part = "" if expert is None else f", expert {expert}"
    return f"{name}{part}" if role is None else f"{name}{part} ({role})"


def claim_of_bytes(file: Path, what: str, sha256: str, start: int, size: int) -> Claim:
    return Claim(file, what, sha256, partial(digest_of_bytes, file, start, size))


def digest_of_bytes(file: Path, start: int, size: int) -> str:
    """SHA-256 of `size` bytes from `start`, as hexadecimal digits."""
    # Imported here, because commands that only inspect a shape compute no digest.
    import hashlib

    # Read into a buffer: the pages of a memory mapping would count as this process's memory.
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(size, _CHUNK)))
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        while size:
            read = opened.readinto(buffer[:size])
            if not read:
                # The file has become shorter, so its digest will differ from the recorded one.
                break
            digest.update(buffer[:read])
            size -= read
    return digest.hexdigest()


class Check:
    """Compares claims with their files.

    `begin` starts comparing in the background. `poll` raises the first difference found so far.
    `finish` compares all remaining claims before it raises the first difference. The error is a
    CheckpointError that names the file, the bytes that differ, and the remedy.
    """

    def __init__(
        self,
        claims: Iterable[Claim] = (),
        remedy: Callable[[], str] = lambda: "copy the file again",
        unchecked: Sequence[str] = (),
    ) -> None:
        self._pending = deque(claims)
        self._what = {claim.sha256: claim.what for claim in self._pending}
        self._remedy = remedy
        self._threads: list[threading.Thread] = []
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self.claims = len(self._pending)
        self.unchecked = tuple(unchecked)
        """descriptions of parts without a digest; each begins with the name of a file or folder"""

    def begin(self) -> Self:
        """Start comparing in a background thread of the lowest priority; return this object."""
        self._start(self._work_in_background)
        return self

    def poll(self) -> None:
        """Raise the first difference found so far, if any."""
        if self._error is not None:
            raise self._error

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and call `poll` before each item."""
        for item in items:
            self.poll()
            yield item

    def finish(self) -> None:
        """Compare the remaining claims on all cores, and raise the first difference."""
        cores = min(os.cpu_count() or 1, _MOST_THREADS)
        for _ in range(min(cores, len(self._pending)) - 1):
            self._start(self._work)
        self._work()
        for thread in self._threads:
            thread.join()
        self.poll()

    def stop(self) -> None:
        """Discard the claims that are not compared yet."""
        self._pending.clear()

    def _start(self, work: Callable[[], None]) -> None:
        if self._pending:
            # A daemon thread does not delay the exit of a command that failed elsewhere.
            thread = threading.Thread(target=work, name="integrity", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work_in_background(self) -> None:
        if sys.platform == "linux":
            # Only Linux gives each thread a priority of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        self._work()

    def _work(self) -> None:
        while self._error is None:
            try:
                claim = self._pending.popleft()
            except IndexError:
                return
            try:
                problem = self._problem(claim)
                if problem is not None:
                    self._fail(problem)
            # After an error of any kind the claim must not count as compared.
            except Exception as error:  # noqa: BLE001
                self._error = error

    def _problem(self, claim: Claim) -> str | None:
        """A message about the claim's bytes; None if their digest is the recorded one."""
        try:
            found = claim.found()
        except OSError as error:
            return f"{claim.file}: {claim.what} cannot be read ({error.strerror or error})"
        if found == claim.sha256:
            return None
        other = self._what.get(found)
        held = f"holds what was written as {other}" if other else "is not what was written"
        return f"{claim.file}: {claim.what} {held} (its digest differs)"

    def _fail(self, problem: str) -> None:
        """Keep the first problem only: its remedy may remove a file, so that other claims fail."""
        with self._lock:
            if self._error is None:
                self._error = CheckpointError(f"{problem}; {self._remedy()}")
