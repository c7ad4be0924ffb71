"""Logs with one JSON object a line: appended while a run trains, cut when it is resumed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura.errors import CheckpointError, StorageError
from mixtura.files import atomic_write
from mixtura.json_reader import read_lines


class Journal:
    """A log open for appending, until `close`. A line that is written in part is removed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _refused(path, error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Raises StorageError. The line survives a kill of this process from then on."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        before = self._file.tell()
        try:
            # A disk that fills up writes a part first, and raises at the next write.
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(before)
            raise _refused(self.path, error) from error

    def sync(self) -> None:
        """Write to the disk, so that a checkpoint never outlives the lines before it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The records of a log, without an incomplete last line, which a killed process may leave.

    Raises CheckpointError naming a line that is no record.
    """
    return [record for _, record in read_lines(path, CheckpointError)]


def cut(path: Path, last_step: int) -> None:
    """Keep the records up to `last_step`, byte for byte; the file changes at once or not at all.

    Raises CheckpointError naming a line that is no record, before anything is changed.
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
