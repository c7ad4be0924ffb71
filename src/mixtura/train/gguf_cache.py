"""GGUF files as packed folders, made at the first opening and kept in the user's cache.

An entry's name is the SHA-256 of the GGUF file and the number of the rule that packed it. To find
it without reading the whole file, `.known/KEY` holds that name: KEY is a digest of the file's
device, inode, size, times of modification and change, and of its first and last 64 KiB.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mixtura.data.preparation import Progress, silent
from mixtura.errors import CheckpointError, ConfigError
from mixtura.files import atomic_text
from mixtura.kernels.groups import GROUP
from mixtura.user_cache import FolderCache, Lease, most_bytes, user_cache

ORIGIN = "origin.json"
# To be raised whenever a file would be packed into other weights than before.
_RULE = 1
_SAMPLE = 65536
_AT_ONCE = 1 << 24
# A file that changed just now may change again within the same tick of the file system's clock.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class PackedGGUF:
    """A packed folder in use, and what a user should know of it."""

    lease: Lease
    remarks: tuple[str, ...]


def packed_cache() -> FolderCache:
    """Where packed weights of GGUF files are kept."""
    return FolderCache(user_cache() / "packed", most_bytes())


def packed_gguf(path: Path, progress: Progress = silent) -> PackedGGUF | None:
    """The file as a packed folder; None where it is no quantised one, or groups do not fit it.

    Raises CheckpointError, ConfigError or StorageError, by name, for a file that cannot be read or
    packed, and for a cache that cannot be written.
    """
    if not path.is_file():
        return None
    cache, identity = packed_cache(), _identity(path)
    known = cache.root / ".known" / identity
    with suppress(OSError):
        lease = cache.opened(known.read_text(encoding="utf-8"))
        if lease is not None:
            return _of(lease)
    if not _can_be_packed(path):
        return None
    digest = _digest(path, progress)
    name = f"{digest[:32]}-{_RULE}"
    lease = cache.made(name, partial(_write, path, identity, digest, progress))
    if time.time() - path.stat().st_ctime > _SETTLED_SECONDS:
        atomic_text(known, name)
    return _of(lease)


def forget(cached: PackedGGUF) -> None:
    """Remove an entry that was damaged since it was written."""
    cached.lease.release()
    packed_cache().remove(cached.lease.path.name)


def _of(lease: Lease) -> PackedGGUF:
    origin: dict[str, Any] = json.loads((lease.path / ORIGIN).read_text(encoding="utf-8"))
    return PackedGGUF(lease, tuple(origin["remarks"]))


def _can_be_packed(path: Path) -> bool:
    from mixtura.interop.gguf import GGUFSource
    from mixtura.interop.loading import decoder_config, tokenizer_of
    from mixtura.shapes.families import family_of

    source = GGUFSource(path)
    if not source.quantised or decoder_config(family_of(source.config), source).width % GROUP:
        return False
    # Without a tokenizer nothing can be asked of it; better said before it is packed.
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
    from mixtura.interop.packing import Precision
    from mixtura.train.packing import pack_into

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
    origin = {"file": str(path.resolve()), "sha256": digest, "remarks": packed.remarks}
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


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
