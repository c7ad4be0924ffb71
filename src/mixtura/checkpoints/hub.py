"""Finds a model's files by its name: a path, a pulled model, or an id of the Hugging Face hub.

A pulled model is one that `mixtura models pull` has fetched. huggingface_hub is optional: in this
folder only this file imports it, to resolve an id or to manage huggingface_hub's cache.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixtura.checkpoints.pulled_models import is_named, pulled_path
from mixtura.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# Only safetensors weights are fetched, not pickle files or layouts such as ONNX.
_FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt"]
_IGNORED = ["original/*", "consolidated*", "onnx/*", "*.onnx*"]


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form OWNER/NAME or OWNER/NAME@REVISION, and no such path exists."""
    return _ID.fullmatch(model) is not None and not Path(model).exists()


def folder_of(model: str) -> Path:
    """Return a local path: `model` itself, the file of a pulled model, or a snapshot of the hub.

    A snapshot that is not in huggingface_hub's cache is downloaded into it; the settings
    HF_HUB_OFFLINE and HF_HOME and the user's login apply. Raises CheckpointError if a pulled model
    or a snapshot cannot be found or downloaded.
    """
    if is_named(model):
        return pulled_path(model)
    if not is_hub_id(model):
        return Path(model)
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{model}: to fetch from the hub needs huggingface_hub; install mixtura[hf], or give "
            "a folder"
        ) from error
    name, _, revision = model.partition("@")
    try:
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=_FETCHED, ignore_patterns=_IGNORED
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{model}: its owner requires agreement to terms first; agree on the hub, then log "
            "in with 'hf auth login'"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{model}: no such folder, and not in the hub's cache, and the hub cannot be reached "
            "(or HF_HUB_OFFLINE is set); give a folder, or fetch it once with a connection"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{model}: cannot be fetched from the hub ({reason})") from error
    return Path(found)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model in huggingface_hub's cache; `bytes` is the size of all its revisions."""

    name: str
    path: Path
    bytes: int
    used: float
    """time of the last access, in seconds since the epoch"""


def hub_models() -> tuple[list[HubModel], list[str]]:
    """List the models in huggingface_hub's cache, and a line about each damaged folder in it.

    The least recently used model comes first. Both lists are empty if huggingface_hub is not
    installed.
    """
    info = _hub_cache()
    if info is None:
        return [], []
    models = [
        HubModel(repo.repo_id, repo.repo_path, repo.size_on_disk, repo.last_accessed)
        for repo in info.repos
        if repo.repo_type == "model"
    ]
    return sorted(models, key=lambda model: model.used), [str(one) for one in info.warnings]


def remove_hub_model(path: Path) -> int:
    """Remove all revisions of the model at `path`, and return the number of bytes freed.

    Raises StorageError if they cannot be removed.
    """
    info = _hub_cache()
    held = () if info is None else (one for one in info.repos if one.repo_path == path)
    repo = next(iter(held), None)
    if info is None or repo is None:
        return 0
    # A renamed repository may be cached under both names, with the same revisions. Only the
    # revisions below `path` are removed.
    revisions = [revision.commit_hash for revision in repo.revisions]
    strategy = replace(info, repos=frozenset({repo})).delete_revisions(*revisions)
    strategy.execute()
    if path.exists():
        raise StorageError(f"{path}: cannot be removed; ask for permission")
    return strategy.expected_freed_size


def _hub_cache() -> "HFCacheInfo | None":
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError:
        return None
    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):
        return None
