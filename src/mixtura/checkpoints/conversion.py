"""Any model as a Hugging Face folder: a run, a checkpoint, or a packed folder."""

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
    """What was written, and remarks for the user."""

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
    """Write the model as a Hugging Face folder; `out` appears whole or not at all.

    Without a `family` a checkpoint keeps its own, and a run takes the first family whose config
    can state all that the run's model computes. Digests are compared before `out` appears, with
    `verify` before anything is written. Raises ConfigError where no family fits, naming the key
    that the family's config lacks.
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
    """The checkpoint whose config and companion files are carried over; None for a run."""
    match weights:
        case SourceWeights():
            return weights.source
        case PackedWeights():
            return FamilySource(weights, family)
        case _:
            return None


def write_tokenizer(tokenizer: Tokenizer, folder: Path, like: Path | None = None) -> None:
    """Write the tokenizer for transformers' AutoTokenizer, and the tokens that end an answer.

    The generation_config.json of the folder `like` is carried over.
    """
    as_checkpoint(tokenizer).save(folder)
    ends = sorted(tokenizer.ends)
    own = None if like is None else like / GENERATION
    stated = read_json(own, "how its model generates") if own and own.is_file() else {}
    generation = {**stated, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    atomic_text(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
