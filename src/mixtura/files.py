"""Writes files and folders that appear whole or not at all.

A file is written as a partial, under a temporary name beside its target. Then it is synced and
renamed. If the process is killed before the rename, the target is unchanged, and a partial named
`.NAME.*.partial` may remain. The next writer of the same target removes that partial.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mixtura.errors import StorageError
from mixtura.posix import fcntl

# Errors of a full, read-only or failing disk. Any other OSError in the caller's block may concern
# another file.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_SETTLED_SECONDS = 10.0


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a binary handle, whose bytes replace `path` when the block ends without error.

    Missing parent folders are made. `mode` gives the file's permissions before the process's umask
    is applied. Raises StorageError if the file system refuses.
    """
    with _refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(path)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    handle = os.fdopen(descriptor, "wb")
    try:
        _lock(descriptor)
        with _refusals(path, _DISK):
            yield handle
        with _refusals(path):
            handle.flush()
            os.fsync(descriptor)
            partial.replace(path)
            _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        # After a failed write, close() flushes again and raises the write's error again.
        with suppress(OSError):
            handle.close()


def atomic_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises StorageError."""
    with atomic_write(path, mode) as handle:
        handle.write(text.encode("utf-8"))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `path` when the block ends without error.

    Raises StorageError if `path` exists when the block begins or ends, or if the file system
    refuses.
    """
    with _refusals(path):
        _refuse_existing(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(path)
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY)
    try:
        _lock(descriptor)
        with _refusals(path, _DISK):
            yield partial
        with _refusals(path):
            _sync_tree(partial)
            # Check again: rename() would replace an empty folder that another process made.
            _refuse_existing(path)
            partial.rename(path)
            _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def _refusals(path: Path, codes: set[int] | None = None) -> Iterator[None]:
    """Convert an OSError, or only one with a code in `codes`, into a StorageError about `path`."""
    try:
        yield
    except OSError as error:
        if codes is not None and error.errno not in codes:
            raise
        reason = error.strerror or error
        raise StorageError(
            f"{path}: cannot be written ({reason}); nothing was half-written: "
            "free some space or choose another place"
        ) from error


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise StorageError(f"{path}: already exists; remove it or choose another place")


def remove_partials(folder: Path) -> None:
    """Remove the partial files and folders in `folder` whose writers were killed."""
    for partial in folder.glob(".*.partial"):
        _remove_abandoned(partial)


def partial_beside(path: Path) -> Path:
    """A new name for a partial of `path`, in the same folder.

    Partials of `path` whose writers were killed are removed first.
    """
    # A name may have 255 bytes, and 40 characters take at most 160 bytes.
    stem = path.name[:40]
    for partial in path.parent.glob(f".{_literal(stem)}.*.partial"):
        _remove_abandoned(partial)
    return path.parent / f".{stem}.{secrets.token_hex(4)}.partial"


def _literal(name: str) -> str:
    """`name` as a glob pattern that matches only itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _lock(descriptor: int) -> None:
    """Lock a partial until `descriptor` is closed; the lock shows that its writer still runs."""
    # On a file system without locks, partials of killed writers are not removed.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_abandoned(partial: Path) -> None:
    """Remove a partial whose writer was killed: it is unlocked and older than 10 s."""
    with suppress(OSError):
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A new partial is unlocked for a moment, because its writer locks it after creation.
            if time.time() - os.fstat(descriptor).st_mtime > _SETTLED_SECONDS:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        finally:
            os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for here, _, files in os.walk(folder, topdown=False):
        for name in files:
            descriptor = os.open(Path(here) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(here))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync folders by themselves and refuse fsync.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)
