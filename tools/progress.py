"""Shows the progress of a long command: one line that changes, or short lines in a log."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

SECONDS_BETWEEN_LINES = 15
MEGABYTE = 1_000_000

_PACKAGE = re.compile(r"(?:Collecting |Requirement already satisfied: |Processing \S*/)([\w.]+)")
_DOWNLOAD = re.compile(r" *(?:Downloading|Using cached) ([\w.]+)-\S+")
_BYTES = re.compile(r"Progress (\d+) of (\d+)")
_COMPILED = re.compile(r" *\[(\d+)/(\d+)\] Building")
_INSTALLING = re.compile(r"Installing collected packages: (.*)")
_BUILDING = re.compile(r" *Building (?:editable|wheel) for ([\w.-]+) \(pyproject.toml\): started")


class PipReport:
    """The state of a pip command, as read from the lines of its output."""

    def __init__(self) -> None:
        self.doing = "starting"
        self.installs = False
        self._packages: set[str] = set()
        self._file = ""

    def hear(self, line: str) -> None:
        if found := _PACKAGE.match(line):
            self._packages.add(found[1].lower())
            number = len(self._packages)
            self.doing = f"{number} package{'s' if number > 1 else ''} found"
        elif found := _DOWNLOAD.match(line):
            self._file = found[1]
            self.doing = f"downloading {self._file}"
        elif found := _BYTES.match(line):
            done, total = (int(number) / MEGABYTE for number in found.groups())
            self.doing = f"downloading {self._file}, {done:.0f} of {total:.0f} MB"
        elif found := _BUILDING.match(line):
            self.doing = f"building {found[1]}"
        elif found := _COMPILED.match(line):
            self.doing = f"compiling, {found[1]} of {found[2]}"
        elif found := _INSTALLING.match(line):
            first, *others = found[1].split(", ")
            self.installs = True
            self.doing = f"installing {first}" + (f" and {len(others)} more" if others else "")


class Step:
    """One of several steps, whose progress is shown until it ends."""

    def __init__(self, number: int, steps: int, title: str) -> None:
        self._head = f"{number}/{steps} {title}"
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
        self._report: PipReport | None = None
        self._over = threading.Event()
        self._ticking = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        if self._live:
            self._draw()
        self._ticking.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._ticking.join()
        self._report = None
        if kind is None:
            self._line(f"{self._head}: done, {self._elapsed()}")

    def run_pip(self, python: Path, arguments: Sequence[str], log: Path, torn: Path) -> None:
        """Run pip and append its output to `log`. Raises subprocess.CalledProcessError.

        The file `torn` is created when pip begins to install, and removed when pip succeeds. So it
        remains if pip stops while it installs.
        """
        command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
        self._report = report = PipReport()
        with (
            log.open("a", encoding="utf-8", buffering=1) as kept,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as pip,
        ):
            assert pip.stdout is not None
            kept.write(f"$ {' '.join(command)}\n")
            for line in pip.stdout:
                kept.write(line)
                report.hear(line)
                if report.installs:
                    torn.touch()
        if pip.returncode != 0:
            raise subprocess.CalledProcessError(pip.returncode, command)
        torn.unlink(missing_ok=True)

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._began:.0f} s"

    def _tick(self) -> None:
        while not self._over.wait(0.5 if self._live else SECONDS_BETWEEN_LINES):
            self._draw()

    def _draw(self) -> None:
        doing = f"{self._report.doing}, " if self._report is not None else ""
        text = f"{self._head}: {doing}{self._elapsed()}"
        if not self._live:
            self._line(text)
            return
        width = os.get_terminal_size(sys.stdout.fileno()).columns
        print(f"\r{text[: width - 1]}\x1b[K", end="", flush=True)

    def _line(self, text: str) -> None:
        print(f"\r{text}\x1b[K" if self._live else text, flush=True)
