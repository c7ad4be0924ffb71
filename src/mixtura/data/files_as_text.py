"""Files read as documents: UTF-8 text, or the reason why a file is none."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixtura.data.documents import Skipped


def read_text(path: Path) -> str | Skipped:
    """The text of a UTF-8 file, without a byte-order mark, or why it is left out."""
    name = str(path)
    try:
        if not path.is_file():
            path.stat()
            return Skipped(name, "not a regular file")
        raw = path.read_bytes()
    except OSError as error:
        return Skipped(name, f"unreadable ({error.strerror})")
    if (nul := raw.find(b"\0")) >= 0:
        return Skipped(name, f"binary (NUL at byte {nul})")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skipped(name, f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})")
    return text if text.strip() else Skipped(name, "empty")


def files_under(folder: Path) -> Iterator[Path | Skipped]:
    """Every file below a folder, sorted; names that start with a dot are passed over.

    Links to folders are not followed. A folder that cannot be listed is named.
    """
    problems: list[OSError] = []
    for here, folders, files in os.walk(folder, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))
    yield from (Skipped(str(e.filename), f"unreadable ({e.strerror})") for e in problems)


def total_bytes(paths: Iterable[Path]) -> int:
    """Bytes of the files that can be looked at."""
    return sum(size for _, size, _ in _stamps(paths))


def fingerprint_of(paths: Iterable[Path]) -> str:
    """A digest of the files' places, sizes and times; it changes when one of them does."""
    return hashlib.sha256(json.dumps(list(_stamps(paths))).encode()).hexdigest()


def _stamps(paths: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            # Reading will name it.
            continue
        yield str(path.resolve()), status.st_size, status.st_mtime_ns
