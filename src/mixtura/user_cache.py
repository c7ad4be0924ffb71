"""A cache of folders that all processes of a user share.

When space is needed, the least recently used folders are removed first. Files and locks:

ROOT/NAME/           an entry; each process that uses the entry holds a shared lock on the folder
ROOT/NAME/used       its modification time is the time at which the entry was last opened
ROOT/.making         is locked by a process while it makes or removes entries
"""

import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mixtura.errors import ConfigError, StorageError
from mixtura.files import atomic_folder, partial_beside, remove_partials
from mixtura.memory import in_words
from mixtura.posix import fcntl

USED = "used"
MOST_GB = 50.0


def user_cache() -> Path:
    """The folder that MIXTURA_CACHE names; by default `mixtura` in the user's cache folder."""
    own = os.environ.get("MIXTURA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixtura"


def most_bytes() -> int:
    """The size limit of the cache: MIXTURA_CACHE_GB, by default 50 GB.

    Raises ConfigError if MIXTURA_CACHE_GB is not a size.
    """
    stated = os.environ.get("MIXTURA_CACHE_GB")
    if not stated:
        return int(MOST_GB * 1e9)
    try:
        size = float(stated)
    except ValueError:
        size = -1.0
    if not 0 <= size < 1e9:
        raise ConfigError(f"MIXTURA_CACHE_GB={stated} must be a number of GB, as in 20")
    return int(size * 1e9)


class Lease:
    """An entry in use. Its folder is kept until `release` is called or this object is deleted."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.release = weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of a cache."""

    path: Path
    bytes: int
    used: float
    """when the entry was last opened, in seconds since the epoch"""


class FolderCache:
    """A cache below the folder `root`.

    Its entries take at most `most` bytes together, unless the entries in use take more.
    """

    def __init__(self, root: Path, most: int) -> None:
        self.root, self._most = root, most

    def entries(self) -> list[CacheEntry]:
        """All entries, including damaged ones; the least recently used entry comes first."""
        found: list[CacheEntry] = []
        for path in sorted(self.root.glob("[!.]*/")) if self.root.is_dir() else []:
            # A symbolic link may lead out of the cache, so it is skipped. FileNotFoundError means
            # that another process has removed the folder.
            with suppress(FileNotFoundError):
                if not path.is_symlink():
                    found.append(_entry(path))
        return sorted(found, key=lambda entry: entry.used)

    def opened(self, name: str) -> Lease | None:
        """Take a lease on the entry `name`; None if the entry does not exist."""
        path = self.root / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            _lock(descriptor, shared=True)
            # Another process may have removed the entry before this process got the lock.
            if path.stat().st_ino != os.fstat(descriptor).st_ino:
                raise FileNotFoundError
            with suppress(PermissionError):
                (path / USED).touch()
        except FileNotFoundError:
            os.close(descriptor)
            return None
        return Lease(path, descriptor)

    def made(self, name: str, write: "Callable[[Path, Callable[[int], None]], None]") -> Lease:
        """Take a lease on the entry `name`; `write(folder, make_room)` fills a missing entry.

        `write` must call `make_room(bytes)` before it fills the folder. `make_room` removes the
        least recently used entries until the new entry fits into the size limit. It raises
        StorageError if the disk has too little space.
        """
        with self._making():
            lease = self.opened(name)
            if lease is None:
                remove_partials(self.root)
                with atomic_folder(self.root / name) as folder:
                    write(folder, self._make_room)
                    (folder / USED).touch()
                lease = self.opened(name)
        assert lease is not None, "an entry is removed under the lock alone"
        return lease

    def remove(self, name: str) -> bool:
        """Remove the entry `name`; False if the entry does not exist or is in use."""
        with self._making():
            return self._removed(self.root / name)

    def _make_room(self, size: int) -> None:
        entries = self.entries()
        kept = sum(entry.bytes for entry in entries)
        for entry in entries:
            if kept + size <= self._most:
                break
            if self._removed(entry.path):
                kept -= entry.bytes
        free = shutil.disk_usage(self.root).free
        if size > free:
            raise StorageError(
                f"{self.root}: {in_words(size)} are to be written and {in_words(free)} are free; "
                "free some space, or choose another place with MIXTURA_CACHE"
            )

    def _removed(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            _lock(descriptor, wait=False)
            # The entry is renamed first: if the process is killed now, no half entry remains.
            doomed = partial_beside(path)
            path.rename(doomed)
            shutil.rmtree(doomed)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    @contextmanager
    def _making(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / ".making", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StorageError(
                f"{self.root}: cannot be written ({error.strerror}); choose another place with "
                "MIXTURA_CACHE"
            ) from error
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)


def _entry(path: Path) -> CacheEntry:
    files = {file.name: file.lstat() for file in path.iterdir()}
    used = files.get(USED) or path.stat()
    return CacheEntry(path, sum(file.st_size for file in files.values()), used.st_mtime)


def _lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock a file or folder; on a file system without locks, do nothing.

    With `wait=False`, raises BlockingIOError if another process holds the lock.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError:
        return
