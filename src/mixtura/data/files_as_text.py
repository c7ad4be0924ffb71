"""Reads files as UTF-8 text, and states why a file is skipped."""

import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from mixtura.data.documents import Skipped


def read_text(path: Path) -> str | Skipped:
    """Return the text of a UTF-8 file, without a byte-order mark, or why the file is skipped."""
    try:
        reason = _why_no_file(path)
        raw = b"" if reason else path.read_bytes()
    except OSError as error:
        reason, raw = f"unreadable ({error.strerror})", b""
    if reason:
        return Skipped(printable(path), reason)
    if (nul := raw.find(b"\0")) >= 0:
        return Skipped(printable(path), f"binary (NUL at byte {nul})")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"0x{error.object[error.start]:02x}"
        return Skipped(printable(path), f"not UTF-8 ({wrong} at byte {error.start})")
    return text if text.strip() else Skipped(printable(path), "empty")


def printable(path: Path) -> str:
    """Return the path as UTF-8 text; bytes of a name that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def _why_no_file(path: Path) -> str | None:
    """Return the reason why a path is not a regular file; None for a regular file.

    Only regular files are read, since reading a pipe, for example, could wait for ever. Raises
    OSError if the path does not exist, or is a folder that cannot be listed.
    """
    if path.is_dir():
        next(path.iterdir(), None)
        return "a folder without files"
    path.stat()
    return None if path.is_file() else "not a regular file"


def files_under(folder: Path, without: Container[str] = ()) -> Iterator[Path]:
    """Yield every file below a folder, sorted, and then each folder that cannot be listed.

    Names that start with a dot and folders named in `without` are left out, and links to folders
    are not followed. If there is no file, the folder itself is yielded, and `read_text` then
    returns it as skipped.
    """
    unlisted: list[Path] = []
    found = False
    for here, folders, files in os.walk(
        folder, onerror=lambda error: unlisted.append(Path(error.filename))
    ):
        folders[:] = sorted(
            name for name in folders if name not in without and not name.startswith(".")
        )
        for name in sorted(files):
            if not name.startswith("."):
                found = True
                yield Path(here, name)
    yield from unlisted
    if not found and not unlisted:
        yield folder


def total_bytes(paths: Iterable[Path]) -> int:
    """Return the total bytes of the files, without files whose size cannot be read."""
    return sum(size for _, size, _ in _stamps(paths))


def fingerprint_of(paths: Iterable[Path]) -> str:
    """Return a digest of the paths, the sizes and the modification times of the files."""
    return hashlib.sha256(json.dumps(list(_stamps(paths))).encode()).hexdigest()


def _stamps(paths: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            # When the file is read later, `read_text` gives the reason for skipping it.
            continue
        yield str(path.resolve()), status.st_size, status.st_mtime_ns
