"""Writes weights as a Hugging Face folder, which transformers can load."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.hf.folder import CONFIG, INDEX, SINGLE
from mixtura.checkpoints.hf.model_config import hf_config
from mixtura.checkpoints.piece_coverage import check_stored
from mixtura.checkpoints.source import Source
from mixtura.checkpoints.weights import DecoderWeights, Weights
from mixtura.config import Tree
from mixtura.files import atomic_folder
from mixtura.integrity import Check
from mixtura.models import Decoder
from mixtura.models.precision import gate_names
from mixtura.shapes.families import Family, Piece
from mixtura.tensor_files.digests import Digests, digests_of, write_digests
from mixtura.tensor_files.safetensors_writer import write_tensors

SHARD_BYTES = 5_000_000_000
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""files beside the weights that belong to the model and are copied with it"""
_EXPERTS = ".experts."


@dataclass(frozen=True, slots=True)
class Saved:
    """The folder that was written, and the size of its weights."""

    path: Path
    files: tuple[str, ...]
    bytes: int


def save_model(
    decoder: Decoder,
    family: Family,
    out: Path,
    *,
    like: Source | None = None,
    dtype: torch.dtype | None = None,
    companions: Callable[[Path], object] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Saved:
    """Write a decoder that is in memory; `write_hf` describes the options."""
    return write_hf(
        DecoderWeights(decoder, out),
        family,
        out,
        like=like,
        dtype=dtype,
        companions=companions,
        shard_bytes=shard_bytes,
    )


def write_hf(
    weights: Weights,
    family: Family,
    out: Path,
    *,
    like: Source | None = None,
    dtype: torch.dtype | None = None,
    companions: Callable[[Path], object] | None = None,
    check: Check | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Saved:
    """Write config, weights and digests as the folder `out`, which appears only when complete.

    `like` is the checkpoint that the model came from. Its files beside the weights (`COMPANIONS`)
    are copied, and so are the keys of its config if they still describe the model. `companions`
    writes further files into the folder, such as a tokenizer's. `check` is finished before the
    folder appears; if it fails, no folder appears. Weights are written in `dtype`, by default the
    dtype of `head.weight`; the gates of routers are never rounded. One shard is in memory at a
    time. `progress` is called with the number of bytes written and the total. Raises ConfigError if
    the family's config cannot express what the decoder computes, and StorageError if the disk is
    full.
    """
    config = hf_config(weights.config, family, like)
    dtype = dtype or weights.dtype_of("head.weight")
    config |= {"dtype": str(dtype).removeprefix("torch.")}
    source = FamilySource(weights, family)
    stored = _by_stored(family.pieces(weights.config))
    for pieces in stored.values():
        check_stored(pieces)
    dtypes = _dtypes(weights, dtype)
    shards = _shards(stored, dtypes, shard_bytes)
    names = [SINGLE] if len(shards) == 1 else _shard_names(len(shards))
    total = sum(_bytes(pieces[0], dtypes) for pieces in stored.values())
    digests: dict[str, Digests] = {}
    done = 0
    with atomic_folder(out) as folder:
        for name, shard in zip(names, shards, strict=True):
            # Copied, because experts of a stack share memory, which safetensors refuses.
            tensors = {
                key: source.read(key).to(dtypes[stored[key][0].ours], copy=True).contiguous()
                for key in shard
            }
            write_tensors(folder / name, tensors, out, {"format": "pt"})
            # safetensors makes files that only the owner may read; set the usual permissions.
            (folder / name).chmod(0o666 & ~_umask())
            experts = {key: _experts_in(stored[key], weights.like) for key in shard}
            digests[name] = digests_of(tensors, experts)
            done += sum(tensor.nbytes for tensor in tensors.values())
            if progress is not None:
                progress(done, total)
        _write_json(folder / CONFIG, config)
        if len(shards) > 1:
            _write_json(folder / INDEX, _index(names, shards, total))
        write_digests(folder, digests)
        _carry_over(folder, like)
        if companions is not None:
            companions(folder)
        if check is not None:
            check.finish()
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return Saved(out, files, total)


def _by_stored(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        found[piece.stored].append(piece)
    return found


def _experts_in(pieces: Sequence[Piece], ours: Mapping[str, Tensor]) -> int:
    """The number of experts that a stored tensor stacks; 1 for a tensor without experts."""
    if _EXPERTS not in pieces[0].ours:
        return 1
    held = {piece.at[0] if piece.at and isinstance(piece.at[0], int) else None for piece in pieces}
    return len(ours[pieces[0].ours]) if None in held else len(held)


def _dtypes(weights: Weights, dtype: torch.dtype) -> Mapping[str, torch.dtype]:
    """The dtype in which each tensor of Mixtura's decoder is written, by name."""
    found: dict[str, torch.dtype] = {}
    gates = gate_names(weights.blueprint)
    for name, like in weights.like.items():
        if not isinstance(like, torch.nn.Parameter):
            # A choosing bias stays in fp32, because training changes it in steps of 1e-3. In bf16
            # a bias of 1 would stay 1 after such a step.
            found[name] = weights.dtype_of(name)
        else:
            is_gate = name in gates
            found[name] = torch.promote_types(weights.dtype_of(name), dtype) if is_gate else dtype
    return found


def _bytes(piece: Piece, dtypes: Mapping[str, torch.dtype]) -> int:
    return prod(piece.shape) * dtypes[piece.ours].itemsize


def _shards(
    stored: Mapping[str, list[Piece]], dtypes: Mapping[str, torch.dtype], limit: int
) -> list[list[str]]:
    """Divide the stored tensors, in their order, into shards of at most `limit` bytes.

    A tensor of more than `limit` bytes is a shard by itself.
    """
    shards: list[list[str]] = [[]]
    held = 0
    for name, pieces in stored.items():
        size = _bytes(pieces[0], dtypes)
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _index(names: list[str], shards: list[list[str]], total: int) -> Tree:
    files = {key: name for name, shard in zip(names, shards, strict=True) for key in sorted(shard)}
    return {"metadata": {"total_size": total}, "weight_map": files}


def _carry_over(folder: Path, like: Source | None) -> None:
    if like is None or not like.path.is_dir():
        return
    for name in COMPANIONS:
        if (like.path / name).is_file():
            shutil.copyfile(like.path / name, folder / name)


def _umask() -> int:
    """The process's umask, which Python can read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
