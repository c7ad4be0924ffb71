"""A model's name to the folder that holds it: a path, or an id of the Hugging Face hub.

huggingface_hub is imported here alone in this folder, and only for an id.
"""

import re
from pathlib import Path

from mixtura.errors import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# Weights in other layouts, or in pickle, are not fetched at all.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt"]
_UNWANTED = ["original/*", "consolidated*", "onnx/*", "*.onnx*"]


def is_hub_id(model: str) -> bool:
    """Whether it reads as OWNER/NAME, or OWNER/NAME@REVISION, and no such path exists."""
    return _ID.fullmatch(model) is not None and not Path(model).exists()


def folder_of(model: str) -> Path:
    """The path itself, or the hub's snapshot, fetched into its cache where it is not there yet.

    HF_HUB_OFFLINE, HF_HOME and a login are the hub library's own. Raises CheckpointError where
    nothing is found, or may not be fetched.
    """
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
            name, revision=revision or None, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{model}: its owner asks readers to agree to terms first; do so on the hub, then log "
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
