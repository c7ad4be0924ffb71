"""Packs a GGUF file when it is first opened, and keeps the packed folder in the user's cache.

The name of a cache entry contains the SHA-256 of its GGUF file and the number `_RULE`. To find the
entry without reading the whole GGUF file, the cache has a file `.known/KEY` that holds the entry's
name. KEY is a digest of `_RULE`, of the GGUF file's device, inode, size, times of modification and
change, and of its first and last 64 KiB.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mixtura.config import Config
from mixtura.errors import CheckpointError, ConfigError
from mixtura.files import atomic_text
from mixtura.json_reader import read_object
from mixtura.progress import Progress, silent
from mixtura.shapes.storage import GROUP
from mixtura.user_cache import FolderCache, Lease, most_bytes, user_cache

ORIGIN = "origin.json"
# Increase this number whenever a change of the code makes packing produce different weights.
_RULE = 1
_SAMPLE = 65536
_AT_ONCE = 1 << 24
# A file changed less than 2 s ago may change again without a newer time of change. Its KEY is not
# saved, because the same KEY could then belong to two different contents.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PackedGGUF:
    """A packed GGUF file: the lease that keeps it in the cache, and remarks for the user."""

    lease: Lease
    remarks: tuple[str, ...]


class CacheOrigin(Config):
    """The content of origin.json in a cache entry: the GGUF file that the entry was packed from."""

    file: str
    """the path of the GGUF file at the time of packing"""
    sha256: str
    remarks: tuple[str, ...]


def packed_cache() -> FolderCache:
    """The cache of packed GGUF files."""
    return FolderCache(user_cache() / "packed", most_bytes())


def packed_gguf(path: Path, progress: Progress = silent) -> PackedGGUF | None:
    """Return the packed folder of a GGUF file, after packing the file if it is not cached yet.

    Returns None if `path` is not a file, if the file is not quantised, or if the model's width is
    not a multiple of 32. Raises CheckpointError, ConfigError or StorageError for a file that cannot
    be read or packed, and for a cache that cannot be written.
    """
    if not path.is_file():
        return None
    cache, identity = packed_cache(), _identity(path)
    known = cache.root / ".known" / identity
    with suppress(OSError):
        found = _whole(cache, cache.opened(known.read_text(encoding="utf-8")))
        if found is not None:
            return found
    if not _can_be_packed(path):
        return None
    digest = _digest(path, progress)
    name = f"{digest[:32]}-{_RULE}"
    write = partial(_write, path, identity, digest, progress)
    found = _whole(cache, cache.made(name, write)) or _of(cache.made(name, write))
    if time.time() - path.stat().st_ctime > _SETTLED_SECONDS:
        atomic_text(known, name)
    return found


def forget(cached: PackedGGUF) -> None:
    """Remove a cache entry whose files were damaged after packing."""
    cached.lease.release()
    packed_cache().remove(cached.lease.path.name)


def origin_of(entry: Path) -> CacheOrigin:
    """Read origin.json in a cache entry. Raises CheckpointError if it is missing or damaged."""
    path = entry / ORIGIN
    try:
        tree = read_object(path, CheckpointError)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing; remove the folder {entry.name}") from error
    try:
        return CacheOrigin.parse(tree, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _of(lease: Lease) -> PackedGGUF:
    return PackedGGUF(lease, origin_of(lease.path).remarks)


def _whole(cache: FolderCache, lease: Lease | None) -> PackedGGUF | None:
    """Return the leased entry and its remarks; None without a lease.

    If the entry's origin.json is damaged, remove the entry from the cache and return None.
    """
    if lease is None:
        return None
    try:
        return _of(lease)
    except CheckpointError:
        lease.release()
        cache.remove(lease.path.name)
        return None


def _can_be_packed(path: Path) -> bool:
    from mixtura.checkpoints.gguf import GGUFSource
    from mixtura.checkpoints.loaded_model import decoder_config, tokenizer_of
    from mixtura.shapes.families import family_of

    source = GGUFSource(path)
    if not source.quantised or decoder_config(family_of(source.config), source).width % GROUP:
        return False
    # This raises an error for a file without a tokenizer: such a model cannot generate text.
    tokenizer_of(source)
    return True


def _write(
    path: Path,
    identity: str,
    digest: str,
    progress: Progress,
    folder: Path,
    room: Callable[[int], None],
) -> None:
    from mixtura.checkpoints.packed.file_writer import Precision
    from mixtura.checkpoints.packed_conversion import pack_into

    try:
        packed = pack_into(
            folder,
            path,
            Precision(None, None),
            progress=partial(progress, f"packing {path.name}, once"),
            room=room,
        )
    except ConfigError as error:
        raise ConfigError(f"{error}; --dtype float32 computes from the file as it is") from error
    if _identity(path) != identity:
        raise CheckpointError(f"{path}: was changed while it was read; start again")
    origin = CacheOrigin(file=str(path.resolve()), sha256=digest, remarks=tuple(packed.remarks))
    (folder / ORIGIN).write_text(origin.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _identity(path: Path) -> str:
    with _opened(path) as handle:
        stat = os.fstat(handle.fileno())
        facts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        found = hashlib.sha256(repr((_RULE, facts)).encode())
        found.update(handle.read(_SAMPLE))
        handle.seek(max(0, stat.st_size - _SAMPLE))
        found.update(handle.read(_SAMPLE))
    return found.hexdigest()[:32]


def _digest(path: Path, progress: Progress) -> str:
    found, done = hashlib.sha256(), 0
    with _opened(path) as handle:
        total = os.fstat(handle.fileno()).st_size
        while part := handle.read(_AT_ONCE):
            found.update(part)
            done += len(part)
            progress(f"reading {path.name}", done, total)
    return found.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as handle:
            yield handle
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
