"""Starts and uses a process in which chat templates run, since templates are not trusted.

Jinja's sandbox controls what a template may read and call, but not its time and its memory. A
string times a large number fills the memory, and so do nested lists: thirty levels that each hold
the next level twice. So templates run in a process whose time and memory the operating system
bounds. Its program is template_renderer.py.
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
"""processor time of one request; a published template takes milliseconds"""
MEMORY = 512 << 20
"""bytes of memory of the process; Python and Jinja take 30 MB"""
# Seconds of real time. They end a template that waits without computing, and any template on a
# system that does not bound processor time.
_SECONDS = 6.0
_SECONDS_TO_START = 60.0
# The most bytes of an answer. The process itself has a lower bound for the text.
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a template, or the error that it ended in."""

    text: str = ""
    error: str | None = None
    """why there is no text"""


class TemplateProcess:
    """A process that starts at the first request, and again after a request that ended it.

    Threads may share a TemplateProcess; it handles one request at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def render(self, request: dict[str, Any]) -> Rendered:
        """The answer to a request, whose form template_renderer.py describes."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            # After a fork the pipes belong to the parent, so the child starts its own process.
            if self._running is None or self._running.parent != os.getpid():
                self._running = _Running()
            try:
                return Rendered(**json.loads(self._running.exchange(line)))
            except BaseException as error:
                # The answer may still arrive, and must not be read as that of the next request.
                self._running.end()
                self._running = None
                if isinstance(error, _Ended):
                    return Rendered(error=str(error))
                raise

    def end(self) -> None:
        with self._lock:
            if self._running is not None and self._running.parent == os.getpid():
                self._running.end()
            self._running = None


class _Ended(Exception):
    """The process ended during a request; the message has the reason."""


class _Running:
    """A process that is running. Raises _Ended where it does not start."""

    def __init__(self) -> None:
        self.parent = os.getpid()
        # The process imports from the same places as this one. `-P` leaves out the current folder,
        # whose modules are not trusted.
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
        """The line that answers `line`. Raises _Ended where none comes, or none in time."""
        # The process may have ended, so that the write fails. `_read` then raises the reason.
        with suppress(OSError):
            self._to.write(line)
            self._to.flush()
        return self._read(_SECONDS)

    def end(self) -> int:
        """Kill the process; returns its exit status."""
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
