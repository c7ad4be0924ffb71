"""Whether files hold what was written into them: SHA-256 recorded then, compared now.

The comparison runs in a thread of its own while the model is used already: mapping a file takes
milliseconds, and reading all of it seconds.
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
    """What was recorded of some bytes of a file."""

    file: Path
    what: str
    """the bytes as a person names them, such as "blocks.0.norm.weight (norm)" """
    sha256: str
    found: Callable[[], str]
    """reads them, and gives the digest that they have now"""


def named(name: str, role: str | None, expert: int | None = None) -> str:
    """A tensor in words: "blocks.0.ffn.experts, expert 3 (expert)"."""
    part = "" if expert is None else f", expert {expert}"
    return f"{name}{part}" if role is None else f"{name}{part} ({role})"


def claim_of_bytes(file: Path, what: str, sha256: str, start: int, size: int) -> Claim:
    return Claim(file, what, sha256, partial(digest_of_bytes, file, start, size))


def digest_of_bytes(file: Path, start: int, size: int) -> str:
    """Through a buffer, so that no page of the file counts as this process's memory."""
    # Here, as inspection of a shape imports this file and computes no digest.
    import hashlib

    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(size, _CHUNK)))
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        while size:
            read = opened.readinto(buffer[:size])
            if not read:
                # Shorter than it was: the digest of fewer bytes is another one.
                break
            digest.update(buffer[:read])
            size -= read
    return digest.hexdigest()


class Check:
    """Claims being compared with their files.

    `begin` starts, `poll` raises what was found so far, and `finish` waits for all of it. They
    raise CheckpointError, which names the file, the bytes that differ, and the remedy.
    """

    def __init__(
        self,
        claims: Iterable[Claim] = (),
        remedy: Callable[[], str] = lambda: "copy the file again",
        unchecked: Sequence[str] = (),
    ) -> None:
        self._left = deque(claims)
        self._what = {claim.sha256: claim.what for claim in self._left}
        self._remedy = remedy
        self._threads: list[threading.Thread] = []
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self.claims = len(self._left)
        self.unchecked = tuple(unchecked)
        """what carries no digest, each in words that begin with a file or a folder"""

    def begin(self) -> Self:
        """Compare in the background, on time that the model's own threads leave."""
        self._start(self._work_behind)
        return self

    def poll(self) -> None:
        """Raise what was found to differ, as far as it is known."""
        if self._error is not None:
            raise self._error

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, as long as nothing was found to differ."""
        for item in items:
            self.poll()
            yield item

    def finish(self) -> None:
        """Compare what is left, on all cores, and raise what differs."""
        cores = min(os.cpu_count() or 1, _MOST_THREADS)
        for _ in range(min(cores, len(self._left)) - 1):
            self._start(self._work)
        self._work()
        for thread in self._threads:
            thread.join()
        self.poll()

    def stop(self) -> None:
        """Leave out what has not been compared yet."""
        self._left.clear()

    def _start(self, work: Callable[[], None]) -> None:
        if self._left:
            # A daemon, so that a command which fails for another reason does not wait for it.
            thread = threading.Thread(target=work, name="integrity", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work_behind(self) -> None:
        if sys.platform == "linux":
            # There a thread has a priority of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        self._work()

    def _work(self) -> None:
        while self._error is None:
            try:
                claim = self._left.popleft()
            except IndexError:
                return
            try:
                problem = self._problem(claim)
                if problem is not None:
                    self._fail(problem)
            # Whatever it is, it must not pass for a comparison that found nothing.
            except Exception as error:  # noqa: BLE001
                self._error = error

    def _problem(self, claim: Claim) -> str | None:
        """What is wrong with these bytes, if anything is."""
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
        """The first problem stays: a remedy may remove the file, which others then miss."""
        with self._lock:
            if self._error is None:
                self._error = CheckpointError(f"{problem}; {self._remedy()}")
