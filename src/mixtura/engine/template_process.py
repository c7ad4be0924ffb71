"""The parent's side of the process in which strangers' chat templates run.

Jinja's sandbox keeps a template from what it should not read and call, but not from running without
end or filling the memory: a literal times a number is enough, and so is a list that holds another
one twice on each of thirty levels. No list of what is allowed is sure to be complete, so
templates run in a process that the system bounds (template_renderer.py is its program).
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

CPU_SECONDS = 1
"""of one request, in time of a processor; a published template takes milliseconds"""
MEMORY = 512 << 20
"""of the process, in bytes; Python and Jinja take 30 MB"""
# The processor's time does not grow with other work on the machine. This clock is for what waits
# without computing, and for systems that do not count.
_SECONDS = 6.0
_SECONDS_TO_START = 60.0
# The process's own bounds come first.
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Answered:
    text: str = ""
    error: str | None = None
    """why there is no text"""


class TemplateProcess:
    """Starts with its first request, and anew after one that it did not survive.

    Threads may share it; they are served in turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def ask(self, request: dict[str, Any]) -> Answered:
        """See template_renderer.py for the request."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            # A process that was forked off has its parent's pipes, which are not for its use.
            if self._running is None or self._running.parent != os.getpid():
                self._running = _Running()
            try:
                return Answered(**json.loads(self._running.exchange(line)))
            except BaseException as error:
                # The answer may be on its way still, and the next request must not take it for its
                # own.
                self._running.end()
                self._running = None
                if isinstance(error, _Ended):
                    return Answered(error=str(error))
                raise

    def end(self) -> None:
        with self._lock:
            if self._running is not None and self._running.parent == os.getpid():
                self._running.end()
            self._running = None


class _Ended(Exception):
    """The process did not survive; the message says why."""


class _Running:
    """One process. Raises _Ended where it does not start."""

    def __init__(self) -> None:
        self.parent = os.getpid()
        # Without the folder in which somebody stands, whose modules are not ours, but with the
        # places where this process finds its packages.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mixtura.engine.template_renderer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        self._read(_SECONDS_TO_START)

    def exchange(self, line: bytes) -> bytes:
        """The line that answers this one. Raises _Ended where none does, or none in time."""
        # A write into a pipe whose reader died; what it died of is known below.
        with suppress(OSError):
            self._to.write(line)
            self._to.flush()
        return self._read(_SECONDS)

    def end(self) -> int:
        """Gives its exit status."""
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()
        return status

    def _read(self, seconds: float) -> bytes:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            line = self._from.readline(_MOST_BYTES)
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return line
        status = self.end()
        if late.is_set():
            raise _Ended(f"it takes longer than {seconds:g} s")
        if sys.platform != "win32" and status == -signal.SIGPROF:
            raise _Ended(f"it takes longer than {CPU_SECONDS} s of a processor's time")
        raise _Ended(f"it ended the process that templates run in (status {status})")


TEMPLATES = TemplateProcess()
atexit.register(TEMPLATES.end)
