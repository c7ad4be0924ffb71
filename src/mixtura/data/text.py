"""Text files, folders and globs."""

import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from mixtura.config import Config
from mixtura.data.documents import Document, Skipped, Span
from mixtura.data.files_as_text import files_under, fingerprint_of, read_text, total_bytes
from mixtura.data.python_domains import python_spans
from mixtura.errors import DataError


class _Found(NamedTuple):
    path: Path
    folder: str


class TextSource(Config):
    """UTF-8 text at `paths`: files, folders (every file below) and globs (`corpus/**/*.md`).

    A file is one document, or several where `separator` cuts it. `domain="folder"` labels a
    document by the folder, just below the one given, in which it lies (a file named by itself: by
    its own name). `domain="content"` labels by kind of file, its suffix, and cuts Python files
    into code, comment, docstring, string and table.
    """

    kind: Literal["text"]
    paths: tuple[str, ...] = Field(min_length=1)
    domain: Literal["folder", "content"] = "folder"
    separator: str | None = Field(None, min_length=1)

    @property
    def unit(self) -> Literal["bytes", "documents"]:
        return "bytes"

    def size(self) -> int:
        return total_bytes(self._paths())

    def fingerprint(self) -> str:
        return fingerprint_of(self._paths())

    def read(self) -> Iterator[Document | Skipped]:
        for found in self._found():
            text = found if isinstance(found, Skipped) else read_text(found.path)
            if isinstance(found, Skipped) or isinstance(text, Skipped):
                assert isinstance(text, Skipped)
                yield text
            else:
                yield from self._documents(found, text)

    def _documents(self, found: _Found, text: str) -> Iterator[Document]:
        name = found.path.as_posix()
        domain, cut = self._label(found)
        if self.separator is None:
            yield Document(name, domain, text, cut)
            return
        for number, piece in enumerate(text.split(self.separator)):
            if piece.strip():
                yield Document(f"{name}#{number}", domain, piece, cut)

    def _label(self, found: _Found) -> tuple[str, Callable[[str], list[Span]] | None]:
        if self.domain == "folder":
            return found.folder, None
        suffix = found.path.suffix.lower()
        if suffix in {".py", ".pyi"}:
            return "code", python_spans
        return suffix.removeprefix(".") or "text", None

    def _paths(self) -> list[Path]:
        return [found.path for found in self._found() if isinstance(found, _Found)]

    def _found(self) -> Iterator[_Found | Skipped]:
        """Each file once, in the order of `paths`. Raises DataError where a path leads nowhere."""
        seen: set[Path] = set()
        for given in self.paths:
            for found in _expand(given):
                if isinstance(found, _Found):
                    place = found.path.resolve()
                    if place in seen:
                        continue
                    seen.add(place)
                yield found


def _expand(given: str) -> Iterator[_Found | Skipped]:
    path = Path(given).expanduser()
    if path.is_dir():
        yield from _in_folder(path, path)
    elif path.exists() or path.is_symlink():
        yield _Found(path, path.stem)
    elif matches := sorted(glob.glob(str(path), recursive=True)):
        root = _before_wildcard(path)
        for match in map(Path, matches):
            if match.is_dir():
                continue
            yield _Found(match, _domain_folder(match, root))
    else:
        raise DataError(f"{given}: no such file or folder, and no glob that matches one")


def _in_folder(folder: Path, root: Path) -> Iterator[_Found | Skipped]:
    files = list(files_under(folder))
    if not files:
        yield Skipped(str(folder), "a folder without files")
    for file in files:
        yield file if isinstance(file, Skipped) else _Found(file, _domain_folder(file, root))


def _domain_folder(file: Path, root: Path) -> str:
    """The first folder below `root` on the way to the file, or else `root` itself."""
    below = file.relative_to(root).parts
    return below[0] if len(below) > 1 else root.resolve().name or "text"


def _before_wildcard(path: Path) -> Path:
    plain: list[str] = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)
