"""A source that reads text files, given as files, folders or globs."""

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator

from mixtura.config import Config
from mixtura.data.documents import Document, Skipped, Span
from mixtura.data.files_as_text import (
    files_under,
    fingerprint_of,
    printable,
    read_text,
    total_bytes,
)
from mixtura.data.python_domains import python_spans
from mixtura.errors import DataError


class _Found(NamedTuple):
    path: Path
    # The name lacks the path to the corpus, so that a corpus that is moved is split as before.
    name: str
    folder: str


class TextSource(Config):
    """UTF-8 text at `paths`: files, folders (every file below) and globs (`corpus/**/*.md`).

    A file is one document, or `separator` divides it into several. With `domain="folder"` the
    domain of a file below a folder path is the name of a folder: of the path's direct sub-folder
    that contains the file, or of the path itself if the file is directly in it. A path that is a
    file has its own name as domain, without the suffix. With `domain="content"` a file's domain is
    its suffix, and Python files are divided into code, comment, docstring, string and table.
    """

    kind: Literal["text"]
    paths: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    domain: Literal["folder", "content"] = "folder"
    separator: str | None = Field(default=None, min_length=1)

    @field_validator("paths", mode="before")
    @classmethod
    def _one_or_many(cls, paths: object) -> object:
        return (paths,) if isinstance(paths, str) else paths

    @property
    def unit(self) -> Literal["bytes", "documents"]:
        return "bytes"

    def size(self) -> int:
        return total_bytes(found.path for found in self._found())

    def fingerprint(self) -> str:
        return fingerprint_of(found.path for found in self._found())

    def read(self) -> Iterator[Document | Skipped]:
        for found in self._found():
            text = read_text(found.path)
            if isinstance(text, Skipped):
                yield text
                continue
            domain, cut = self._label(found)
            if self.separator is None:
                yield Document(found.name, domain, text, cut)
                continue
            for number, piece in enumerate(text.split(self.separator)):
                if piece.strip():
                    yield Document(f"{found.name}#{number}", domain, piece, cut)

    def _label(self, found: _Found) -> tuple[str, Callable[[str], list[Span]] | None]:
        if self.domain == "folder":
            return found.folder, None
        suffix = found.path.suffix.lower()
        if suffix in {".py", ".pyi"}:
            return "code", python_spans
        return suffix.removeprefix(".") or "text", None

    def _found(self) -> Iterator[_Found]:
        """Yield each file once, ordered as `paths`. Raises DataError if a path matches nothing."""
        places: set[str] = set()
        names: set[str] = set()
        for given in self.paths:
            for found in _expanded(given):
                # Path.resolve would raise for a loop of links; realpath does not, so that
                # `read_text` can report the loop.
                place = os.path.realpath(found.path)
                if place in places:
                    continue
                name = printable(found.path) if found.name in names else found.name
                places.add(place)
                names.add(name)
                yield found._replace(name=name)


def _expanded(given: str) -> list[_Found]:
    try:
        return list(_expand(given))
    # An unknown ~user raises RuntimeError, and a NUL in a path raises ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{given}: cannot be listed ({error})") from error


def _expand(given: str) -> Iterator[_Found]:
    path = Path(given).expanduser()
    if path.is_dir():
        root, matches = path, [path]
    elif path.exists() or path.is_symlink():
        yield _Found(path, printable(Path(path.name)), printable(Path(path.stem)))
        return
    else:
        root = _before_wildcard(path)
        # Path.glob would match hidden files, and would not take an absolute pattern.
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if not matches:
        raise DataError(f"{given}: no such file or folder, and no glob that matches one")
    for match in matches:
        for file in files_under(match) if match.is_dir() else [match]:
            yield _below(root, file)


def _below(root: Path, file: Path) -> _Found:
    """Label a file by the first folder on its path below `root`, or else by `root` itself."""
    inside = file.relative_to(root)
    top = root.resolve().name or "text"
    folder = inside.parts[0] if len(inside.parts) > 1 else top
    return _Found(file, printable(Path(top, inside)), printable(Path(folder)))


def _before_wildcard(path: Path) -> Path:
    plain: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)
