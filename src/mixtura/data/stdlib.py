"""A source of text that every user has: the files of Python's standard library."""

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from mixtura.config import Config
from mixtura.data.documents import Document, Skipped
from mixtura.data.files_as_text import files_under, read_text, total_bytes
from mixtura.data.python_domains import python_spans
from mixtura.data.split import share
from mixtura.errors import DataError

# Folders of third-party packages, tests, generated tables and programs.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings"}
)


class StdlibSource(Config):
    """About 10 MB of Python source, which is read offline and never imported.

    `limit_mb` (in megabytes of 10^6 bytes) limits the source to a sample of whole files, which is
    the same in every run.
    """

    kind: Literal["stdlib"] = "stdlib"
    limit_mb: float | None = Field(default=None, gt=0)

    @property
    def unit(self) -> Literal["bytes", "documents"]:
        return "bytes"

    def size(self) -> int:
        return total_bytes(self._files().values())

    def fingerprint(self) -> str:
        # The library's text depends only on the version of Python.
        return f"{platform.python_implementation()} {platform.python_version()}"

    def read(self) -> Iterator[Document | Skipped]:
        for name, path in self._files().items():
            text = read_text(path)
            is_text = isinstance(text, str)
            yield Document(name, "code", text, python_spans) if is_text else text

    def _files(self) -> dict[str, Path]:
        """Return files by name, such as `json/decoder.py`. Raises DataError if there are none."""
        root = Path(sysconfig.get_paths()["stdlib"])
        files = {
            path.relative_to(root).as_posix(): path
            for path in files_under(root, without=_LEFT_OUT)
            # Empty files are left out: many __init__.py files are empty.
            if path.suffix == ".py" and total_bytes([path])
        }
        if not files:
            raise DataError(
                f"{root}: no .py files; this Python comes without its library's source, "
                "so give text of your own: data.source.kind=text and data.source.paths"
            )
        return files if self.limit_mb is None else _sample(files, self.limit_mb * 1e6)


def _sample(files: dict[str, Path], limit: float) -> dict[str, Path]:
    """Select whole files with at most `limit` bytes in all, in the order of their names' hashes."""
    kept: set[str] = set()
    for name in sorted(files, key=lambda name: share(name, "sample")):
        size = files[name].stat().st_size
        if size <= limit:
            limit -= size
            kept.add(name)
    if not kept:
        raise DataError("data.source.limit_mb: no file is that small; allow at least 0.01")
    return {name: path for name, path in files.items() if name in kept}
