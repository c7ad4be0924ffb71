"""A file of answers, as JSON lines, that appears whole when all answers are there.

Until then each answer is appended to a part file beside it, so that an interrupted command can be
continued.
"""

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
    """A context manager that collects answers in the part file of `path`.

    `done` maps the number of a prompt to its answer, answers of an earlier, interrupted command
    included. `work` describes the prompts and their options as data; a part file is continued if
    it has the same `work` and `seed`. Raises StorageError where `path` exists, and DataError where
    the part file belongs to other work.
    """

    def __init__(self, path: Path, work: Any, seed: int) -> None:
        check_free(path)
        self.path, self.part = path, part_of(path)
        digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
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
            # Rewriting the file removes a last line that an interruption cut in half.
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
            # After a failed write, close() flushes again and raises the same error.
            with suppress(OSError):
                self._handle.close()

    def add(self, number: int, answer: dict[str, Any]) -> None:
        """Append an answer. After a StorageError the part file keeps the earlier answers."""
        assert self._handle is not None, "it is a context"
        try:
            self._handle.write(f"{json.dumps(answer)}\n")
            self._handle.flush()
        except OSError as error:
            raise _refused(self.path, error) from error
        self.done[number] = answer

    def finish(self) -> None:
        """Write all answers to `path`, in the order of the prompts. Raises StorageError."""
        lines = (json.dumps(self.done[number]) for number in sorted(self.done))
        atomic_text(self.path, "".join(f"{line}\n" for line in lines))
        self.part.unlink(missing_ok=True)


def check_free(path: Path) -> None:
    """Raises StorageError where `path` exists."""
    if path.exists():
        raise StorageError(f"{path}: already exists; remove it or choose another place")


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def kept_seed(path: Path) -> int | None:
    """The seed in the part file of `path`; None without a part file."""
    head, _ = _kept(part_of(path))
    return None if head is None else head["seed"]


def _kept(part: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The first line of a part file, and its answers; a last line that was cut is left out.

    Raises DataError for a file of another kind.
    """
    if not part.exists():
        return None, []
    lines = [line for _, line in read_lines(part, DataError)]
    head, *answers = lines or [{}]
    # `isinstance` would accept True, which is an int.
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
