"""Answers as JSON lines: kept beside their file as they come, and the file whole at the end."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from mixtura.errors import DataError, StorageError
from mixtura.files import atomic_text
from mixtura.json_reader import read_lines

_KIND = "answers"


class AnswersFile:
    """`done` are the answers so far, by number; those of an earlier, interrupted work included.

    `asked` is what is asked for, as data: the same work goes on where it stopped, and another is
    refused. Use it as a context. Raises StorageError where `path` exists, DataError where what is
    kept beside it belongs to other work.
    """

    def __init__(self, path: Path, asked: Any, seed: int) -> None:
        check_free(path)
        self.path, self.part = path, part_of(path)
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        self._head = {"kind": _KIND, "asked": digest, "seed": seed}
        self.done: dict[int, dict[str, Any]] = {}
        self._handle: TextIO | None = None

    def __enter__(self) -> Self:
        head, answers = _kept(self.part)
        if head is not None and head != self._head:
            raise DataError(
                f"{self.part}: holds answers to other prompts, or by other options or another "
                "model; remove it, or choose another --out"
            )
        self.done = {answer["number"]: answer for answer in answers}
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            # Written anew, so that half a line of an interrupted work goes.
            lines = [self._head, *self.done.values()]
            atomic_text(self.part, "".join(f"{json.dumps(line)}\n" for line in lines))
            self._handle = self.part.open("a", encoding="utf-8")
        except OSError as error:
            raise _refused(self.path, error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            # After a failed write, closing tries once more to flush and fails in the same way.
            with suppress(OSError):
                self._handle.close()

    def add(self, number: int, answer: dict[str, Any]) -> None:
        """Raises StorageError; what was added before stays."""
        assert self._handle is not None, "it is a context"
        try:
            self._handle.write(f"{json.dumps(answer)}\n")
            self._handle.flush()
        except OSError as error:
            raise _refused(self.path, error) from error
        self.done[number] = answer

    def finish(self) -> None:
        """Make `path`, in the order of the prompts. Raises StorageError."""
        lines = (json.dumps(self.done[number]) for number in sorted(self.done))
        atomic_text(self.path, "".join(f"{line}\n" for line in lines))
        self.part.unlink(missing_ok=True)


def check_free(path: Path) -> None:
    """Raises StorageError where there is something already."""
    if path.exists():
        raise StorageError(f"{path}: already exists; remove it or choose another place")


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def kept_seed(path: Path) -> int | None:
    """The seed of the work that was interrupted on its way to `path`, if there is one."""
    head, _ = _kept(part_of(path))
    return None if head is None else head["seed"]


def _kept(part: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The first line and the answers; what an interruption cut is left out.

    Raises DataError for a file that is something else.
    """
    if not part.exists():
        return None, []
    lines = [line for _, line in read_lines(part, DataError)]
    head, *answers = lines or [{}]
    # The type itself, since True is an int.
    numbered = all(type(answer.get("number")) is int for answer in answers)
    if head.get("kind") != _KIND or type(head.get("seed")) is not int or not numbered:
        raise DataError(
            f"{part}: is not what an interrupted 'mixtura generate' leaves; move it away, or "
            "choose another --out"
        )
    return head, answers


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: cannot be written ({error.strerror or error}); answers so far stay in "
        f"{part_of(path)}: free some space and give the same command again"
    )
