"""Writes a model and its tokenizer as one GGUF file.

P pairs of dims that RoPE rotates in a head.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from mixtura.checkpoints.expected_tensors import check_tensors
from mixtura.checkpoints.gguf.architectures import Architecture, architecture_for
from mixtura.checkpoints.gguf.blocks import BITS
from mixtura.checkpoints.gguf.encoding import Factors, OutTensor
from mixtura.checkpoints.gguf.header_layout import as_read, head, padding, placed
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.checkpoints.gguf.rope import factors_of
from mixtura.checkpoints.gguf.source import ROPE_FACTORS, in_file_kind
from mixtura.checkpoints.gguf.tokenizer_writer import tokenizer_keys
from mixtura.checkpoints.hf.model_config import difference_of, function_of
from mixtura.checkpoints.loaded_model import decoder_config
from mixtura.checkpoints.source import Source
from mixtura.errors import ConfigError
from mixtura.files import atomic_write
from mixtura.integrity import Check
from mixtura.kernels.packed.groups import GROUP
from mixtura.models import DecoderConfig
from mixtura.shapes.families import Piece, family_of
from mixtura.tokenizers import Tokenizer

KindName = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
_KINDS: Mapping[str, Kind] = {name: Kind[name.upper()] for name in get_args(KindName)}
_DEFAULT = Kind.Q8_0
_FILE_TYPES: Mapping[Kind, LlamaFileType] = {
    Kind.F32: LlamaFileType.ALL_F32,
    Kind.F16: LlamaFileType.MOSTLY_F16,
    Kind.BF16: LlamaFileType.MOSTLY_BF16,
    Kind.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Kind.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}
# The version of the block layouts; llama.cpp needs this number in a quantised file.
_QUANTISATION_VERSION = 2


@dataclass(frozen=True, slots=True)
class Written:
    """The GGUF file that was written."""

    path: Path
    architecture: str
    kind: str
    """the storage format of most weights, such as `q8_0`"""
    bytes: int
    left_out: Mapping[str, str]
    """maps each tensor of the source that the model does not use, by name, to a description"""


def write_gguf(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    *,
    name: str,
    kind: KindName | None = None,
    check: Check | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a checkpoint as the GGUF file `out`, which appears only when it is complete.

    Matrices are stored as `kind`. Vectors, biases and routers are stored in fp32, as llama.cpp
    stores them. With `kind` None a matrix that the source stores as q4_0 or q8_0 keeps its format,
    and any other matrix becomes q8_0. Quantised numbers whose format does not change are copied
    exactly. One tensor is in memory at a time.

    `check` is finished before the file appears; if it fails, no file appears. `progress` is called
    with the number of bytes written and the total. Raises ConfigError for a family without an
    architecture in llama.cpp, for a config that the metadata cannot express, and for a matrix to be
    quantised whose row length is not a multiple of 32. Raises DataError for a tokenizer that GGUF
    cannot hold.
    """
    plan = _plan(source, kind)
    metadata = {
        "general.architecture": plan.architecture.name,
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[plan.kind].value,
        "general.quantization_version": _QUANTISATION_VERSION,
        **plan.keys,
        **tokenizer_keys(tokenizer, plan.vocabulary),
    }
    places = placed((one.name, one.shape, one.kind) for one in plan.tensors)
    opening = head(metadata, places)
    total = len(opening) + sum(place.bytes + padding(place.bytes) for place in places)
    with atomic_write(out) as handle:
        handle.write(opening)
        for tensor, place in zip(plan.tensors, places, strict=True):
            for raw in tensor.encoded(source):
                handle.write(raw.data)
                if progress is not None:
                    progress(handle.tell(), total)
            handle.write(bytes(padding(place.bytes)))
        assert handle.tell() == total, "every tensor is as long as its place"
        if check is not None:
            check.finish()
    return Written(out, plan.architecture.name, plan.kind.name.lower(), total, plan.left_out)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The decisions that are made before a weight is read."""

    architecture: Architecture
    keys: Mapping[str, Any]
    vocabulary: int
    tensors: tuple[OutTensor | Factors, ...]
    left_out: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        """The storage format of most weights."""
        weights: dict[Kind, int] = defaultdict(int)
        for one in self.tensors:
            weights[one.kind] += prod(one.shape)
        return max(weights, key=weights.__getitem__)


def _plan(source: Source, kind: KindName | None) -> _Plan:
    family = family_of(source.config)
    architecture = architecture_for(family.model_type)
    config = decoder_config(family, source)
    pieces = list(family.pieces(config))
    left_out = check_tensors(source, family, pieces)
    architecture.check(config)
    stored = {piece.stored: piece.shape for piece in pieces}
    tensors = _tensors(architecture.links(stored, config, present=()), source, kind)
    factors_P = factors_of(config.attention.model_dump())
    keys = _keys(architecture, config, {one.name for one in tensors}, factors_P)
    extra = [] if factors_P is None else [Factors(ROPE_FACTORS, factors_P)]
    return _Plan(architecture, keys, config.vocabulary, (*tensors, *extra), left_out)


def _tensors(links: Iterable[Piece], source: Source, kind: KindName | None) -> list[OutTensor]:
    """List the tensors to write, in the order of `links`.

    Raises ConfigError for a quantised tensor whose row length is not a multiple of 32.
    """
    by_name: dict[str, list[Piece]] = defaultdict(list)
    for link in links:
        by_name[link.stored].append(link)
    found: list[OutTensor] = []
    for name, pieces in by_name.items():
        shape, own = pieces[0].shape, Kind.F32
        if in_file_kind(name, shape):
            own = _kind_of(pieces, source) if kind is None else _KINDS[kind]
        if own in BITS and shape[-1] % GROUP:
            raise ConfigError(
                f"{name}: rows of {shape[-1]} numbers, which the blocks of {GROUP} of "
                f"{own.name.lower()} do not fill; write it as bf16, f16 or f32"
            )
        found.append(OutTensor(name, shape, own, tuple(pieces)))
    return found


def _kind_of(pieces: list[Piece], source: Source) -> Kind:
    """The format that all pieces are stored in, if it is Q4_0 or Q8_0; otherwise Q8_0."""
    stored = {source.tensors[piece.ours].dtype.lower() for piece in pieces}
    own = _KINDS.get(stored.pop(), _DEFAULT) if len(stored) == 1 else _DEFAULT
    return own if own in BITS else _DEFAULT


def _keys(
    architecture: Architecture,
    config: DecoderConfig,
    names: Container[str],
    factors_P: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """Translate the config to metadata.

    Raises ConfigError if the metadata, translated back, describes a model with other outputs.
    """
    found = {
        f"{architecture.name}{key}": value
        for key, value in architecture.keys(config.model_dump()).items()
    }
    values = {key: as_read(value) for key, value in found.items()}
    metadata = Metadata({"general.architecture": architecture.name, **values}, Path("metadata"))
    read = architecture.config(metadata, names, factors_P)
    again = DecoderConfig.parse(family_of(read).read(read), "metadata")
    theirs, ours = (_rounded(_inference(one, architecture)) for one in (again, config))
    if difference := difference_of(theirs, ours):
        key, there, here = difference
        raise ConfigError(
            f"{key}={here!r} has no place in a GGUF file of the architecture {architecture.name}, "
            f"which says {there!r}; keep the model as a Hugging Face folder"
        )
    return found


def _inference(config: DecoderConfig, architecture: Architecture) -> dict[str, Any]:
    """The settings of a config that inference depends on."""
    tree = function_of(config)
    if architecture.needs_head:
        # A tied head is written as a copy of the embedding, so the file is read as untied.
        del tree["tied_head"]
    if tree["moe"] is not None:
        router = {key: value for key, value in tree["moe"]["router"].items() if key != "jitter"}
        tree["moe"] = {**tree["moe"], "router": router}
    return tree


def _rounded(tree: Any) -> Any:
    """Round every float in a tree of settings to fp32."""
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    return as_read(tree)
