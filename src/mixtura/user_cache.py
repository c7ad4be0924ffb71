"""Folders in the user's cache: made once, shared by processes, the least recently used removed.

ROOT/NAME/           an entry; its folder's lock is shared while it is in use
ROOT/NAME/used       its time of modification says when the entry was last opened
ROOT/.making         the lock of a process that makes or removes entries
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
    """MIXTURA_CACHE, or `mixtura` in the user's cache folder."""
    own = os.environ.get("MIXTURA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixtura"


def most_bytes() -> int:
    """The bound that MIXTURA_CACHE_GB states. Raises ConfigError where that is no size."""
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
    """An entry in use: its folder is not removed before `release` or the end of this object."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.release = weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of a cache."""

    path: Path
    bytes: int
    used: float
    """when it was last opened, in seconds since the epoch"""


class FolderCache:
    """The entries below one folder: `most` bytes together, or more while more are in use."""

    def __init__(self, root: Path, most: int) -> None:
        self.root, self._most = root, most

    def entries(self) -> list[CacheEntry]:
        """All entries, damaged ones too, the least recently used first."""
        found: list[CacheEntry] = []
        for path in sorted(self.root.glob("[!.]*/")) if self.root.is_dir() else []:
            # A link leads out of the cache. Another process may remove a folder at any moment.
            with suppress(FileNotFoundError):
                if not path.is_symlink():
                    found.append(_entry(path))
        return sorted(found, key=lambda entry: entry.used)

    def opened(self, name: str) -> Lease | None:
        """The entry `name`; None where it does not exist."""
        path = self.root / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            _lock(descriptor, shared=True)
            # Another process may have removed the entry before this one held the lock.
            if path.stat().st_ino != os.fstat(descriptor).st_ino:
                raise FileNotFoundError
            with suppress(PermissionError):
                (path / USED).touch()
        except FileNotFoundError:
            os.close(descriptor)
            return None
        return Lease(path, descriptor)

    def made(self, name: str, write: "Callable[[Path, Callable[[int], None]], None]") -> Lease:
        """The entry `name`, made by `write(folder, make_room)` where it does not exist.

        `write` calls `make_room(bytes)` before it fills the folder; older entries are then removed
        as far as the bound requires. Raises StorageError where the disk has less room.
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
        """Remove the entry `name`; False where it does not exist or is in use."""
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
            # Renamed first: a process that is killed in the middle leaves no half entry.
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
    """Lock a folder, if its file system has locks. Raises BlockingIOError where it is locked."""
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError:
        return
