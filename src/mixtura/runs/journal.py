"""Logs with one JSON object per line.

A log grows while a run trains. When the run resumes from a checkpoint, the lines of later steps are
removed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura.errors import CheckpointError, StorageError
from mixtura.files import atomic_write
from mixtura.json_reader import read_lines


class Journal:
    """A log that is open for appending; a line that cannot be written whole is removed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _refused(path, error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line, which then survives a kill of this process. Raises StorageError."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        before = self._file.tell()
        try:
            # When a disk fills up, the first write is partial, and the next write raises OSError.
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(before)
            raise _refused(self.path, error) from error

    def sync(self) -> None:
        """Force all lines to the disk; a run does this before it saves a checkpoint."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log, without the incomplete last line that a killed process may leave.

    Raises CheckpointError, which names the line, for a line that is no record.
    """
    return [record for _, record in read_lines(path, CheckpointError)]


def cut(path: Path, last_step: int) -> None:
    """Remove the records of steps after `last_step`; the other lines do not change by a byte.

    The whole file is replaced at once. Raises CheckpointError, which names the line, for a line
    that is no record; the file is then unchanged.
    """
    if not path.exists():
        return
    with atomic_write(path) as handle:
        for number, (line, record) in enumerate(read_lines(path, CheckpointError), start=1):
            if _step_of(record, path, number) <= last_step:
                handle.write(line)


def _step_of(record: Mapping[str, Any], path: Path, number: int) -> int:
    step = record.get("step")
    if not isinstance(step, int):
        raise CheckpointError(
            f"{path}: line {number} has step={step!r:.40}, which is no step; remove the line"
        )
    return step


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: cannot be written ({error.strerror}); free some space, "
        "then go on from the last checkpoint with --resume"
    )
