"""Lists and removes the models in Mixtura's caches and in huggingface_hub's cache."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixtura.checkpoints.gguf_cache import origin_of, packed_cache
from mixtura.checkpoints.hub import hub_models, remove_hub_model
from mixtura.checkpoints.pulled_models import NAMED, pulled_cache, release
from mixtura.errors import CheckpointError, ConfigError
from mixtura.user_cache import CacheEntry, FolderCache, most_bytes

CacheKind = Literal["pulled", "packed", "hub"]


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model that a cache holds."""

    name: str
    """the name that `mixtura models remove` takes"""
    kind: CacheKind
    path: Path
    bytes: int
    used: float
    """when it was last opened, in seconds since the epoch"""
    origin: str
    """where the model came from; for a damaged entry, a note on the damage"""
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class KeptModels:
    """All models in the caches, and the most bytes that packed models may take together."""

    models: tuple[KeptModel, ...]
    unreadable: tuple[str, ...]
    """huggingface_hub's warnings about folders that it cannot read"""
    most_packed: int

    def bytes(self, kind: CacheKind | None = None) -> int:
        return sum(model.bytes for model in self.models if kind in (None, model.kind))

    def named(self, name: str) -> KeptModel:
        """The model of that name. Raises ConfigError unless exactly one model has the name."""
        found = [model for model in self.models if name in (model.name, model.path.name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"{name}: is the name of several; give one of "
                + ", ".join(model.path.name for model in found)
            )
        raise ConfigError(f"{name}: no cache holds a model of this name; see 'mixtura models'")


@dataclass(frozen=True, slots=True)
class Removed:
    """The model that was removed, and the bytes that were freed."""

    name: str
    bytes: int
    packed_bytes: int
    """the bytes of the packed weights that were made from a pulled model, and removed with it"""


def kept_models() -> KeptModels:
    """List pulled models, packed GGUF files and models of the hub.

    Models of one kind are sorted by their last use, the least recently used first.
    """
    pulled = [_pulled(entry) for entry in pulled_cache().entries()]
    packed = _packed(packed_cache().entries())
    hub, unreadable = hub_models()
    snapshots = [
        KeptModel(model.name, "hub", model.path, model.bytes, model.used, "the Hugging Face hub")
        for model in hub
    ]
    return KeptModels((*pulled, *packed, *snapshots), tuple(unreadable), most_bytes())


def remove_model(model: KeptModel, kept: KeptModels) -> Removed:
    """Remove `model`, and with a pulled model also the packed weights that were made from it.

    The packed weights are looked up in `kept`. Raises CheckpointError if another process uses the
    model.
    """
    if model.kind == "hub":
        return Removed(model.name, remove_hub_model(model.path), 0)
    if model.kind == "packed":
        _remove(packed_cache(), model)
        return Removed(model.name, model.bytes, 0)
    release(model.name)
    _remove(pulled_cache(), model)
    made = [one for one in kept.models if one.kind == "packed" and _is_of(one, model)]
    gone = [one.bytes for one in made if packed_cache().remove(one.path.name)]
    return Removed(model.name, model.bytes, sum(gone))


def _is_of(packed: KeptModel, pulled: KeptModel) -> bool:
    return not packed.damaged and Path(packed.origin).parent == pulled.path.resolve()


def _remove(cache: FolderCache, model: KeptModel) -> None:
    if not cache.remove(model.path.name) and model.path.exists():
        raise CheckpointError(
            f"{model.name}: another process uses it; end that process, then remove it"
        )


def _pulled(entry: CacheEntry) -> KeptModel:
    name = entry.path.name
    known = NAMED.get(name)
    if known is None:
        return KeptModel(name, "pulled", entry.path, entry.bytes, entry.used, "an older version")
    file = entry.path / known.file
    damaged = not file.is_file() or file.stat().st_size != known.bytes
    said = "damaged; pull it again" if damaged else f"{known.what}; {known.licence}"
    return KeptModel(name, "pulled", entry.path, entry.bytes, entry.used, said, damaged)


def _packed(entries: list[CacheEntry]) -> list[KeptModel]:
    """Name each packed entry after its GGUF file.

    The entry's own name is used if several GGUF files share a name, or if the entry is damaged.
    """
    files = {entry.path: _file_of(entry) for entry in entries}
    counts = Counter(file.name for file in files.values() if file is not None)
    found: list[KeptModel] = []
    for entry in entries:
        file = files[entry.path]
        name = entry.path.name if file is None or counts[file.name] > 1 else file.name
        origin = "damaged; made again when its file is opened" if file is None else str(file)
        found.append(
            KeptModel(
                name, "packed", entry.path, entry.bytes, entry.used, origin, damaged=file is None
            )
        )
    return found


def _file_of(entry: CacheEntry) -> Path | None:
    try:
        return Path(origin_of(entry.path).file)
    except CheckpointError:
        return None
