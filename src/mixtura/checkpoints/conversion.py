"""Converts a run, a checkpoint or a packed folder to a Hugging Face folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.checkpoints.expected_tensors import described
from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.hf.folder import GENERATION, read_json
from mixtura.checkpoints.hf.folder_writer import SHARD_BYTES, write_hf
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.model_kind import what_is
from mixtura.checkpoints.open_model import DTYPES, DTypeName
from mixtura.checkpoints.packed.weights import PackedWeights
from mixtura.checkpoints.source import Source
from mixtura.checkpoints.source_weights import SourceWeights
from mixtura.checkpoints.weight_readers import open_weights
from mixtura.checkpoints.weights import Weights
from mixtura.errors import reading
from mixtura.files import atomic_text
from mixtura.shapes.families import Family
from mixtura.tokenizers import Tokenizer
from mixtura.tokenizers.exported_tokenizer import as_checkpoint


@dataclass(frozen=True, slots=True)
class Converted:
    """The Hugging Face folder that was written, and remarks for the user."""

    path: Path
    family: str
    files: tuple[str, ...]
    bytes: int
    remarks: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "family": self.family,
            "files": list(self.files),
            "bytes": self.bytes,
            "remarks": list(self.remarks),
        }


def convert_model(
    model: str | Path,
    out: Path,
    *,
    family: str | None = None,
    dtype: DTypeName | None = None,
    shard_bytes: int = SHARD_BYTES,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write the model as the Hugging Face folder `out`, which appears only when it is complete.

    With `family` None a checkpoint keeps its family, and a run gets the first family whose config
    can express the run's model. The weights are compared with their digests before `out` appears;
    with `verify`, before anything is written. Raises ConfigError if no family fits; the message
    names the key that the family's config lacks.
    """
    with reading(model):
        path = folder_of(str(model))
        opened = open_weights(path)
        tokenizer = opened.needed_tokenizer()
        weights = opened.weights.in_memory()
    check = weights.check.begin()
    if verify:
        check.finish()
    chosen = opened.family_for(family)
    folder = path.is_dir() and what_is(path) != "run"

    def companions(partial: Path) -> None:
        if not folder:
            write_tokenizer(tokenizer, partial)

    saved = write_hf(
        weights,
        chosen,
        out,
        like=_like(opened.weights, chosen),
        dtype=None if dtype is None else DTYPES[dtype],
        companions=companions,
        check=check,
        shard_bytes=shard_bytes,
        progress=progress,
    )
    remarks = (*described(opened.left_out), *(check.unchecked if verify else ()))
    return Converted(saved.path, chosen.model_type, saved.files, saved.bytes, remarks)


def _like(weights: Weights, family: Family) -> Source | None:
    """Return the checkpoint from which the config and files, such as a chat template, are copied.

    Returns None for a run.
    """
    match weights:
        case SourceWeights():
            return weights.source
        case PackedWeights():
            return FamilySource(weights, family)
        case _:
            return None


def write_tokenizer(tokenizer: Tokenizer, folder: Path, like: Path | None = None) -> None:
    """Write a tokenizer that transformers' AutoTokenizer loads, and a generation_config.json.

    The generation_config.json is copied from the folder `like`, if that folder has one. Its
    `eos_token_id` is replaced by the tokens that end an answer.
    """
    as_checkpoint(tokenizer).save(folder)
    ends = sorted(tokenizer.ends)
    own = None if like is None else like / GENERATION
    stated = read_json(own, "how its model generates") if own and own.is_file() else {}
    generation = {**stated, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    atomic_text(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
