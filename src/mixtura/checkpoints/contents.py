"""Describes a checkpoint from its config and from the names and shapes of its tensors.

No weight is read, except to compare it with its digest.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mixtura.integrity import Check
from mixtura.shapes import DecoderShape, ModelShape, Role
from mixtura.shapes.families import family_of, shape_of

if TYPE_CHECKING:
    from mixtura.checkpoints.source import Source, StoredTensor
    from mixtura.packed.file import PackedFile

# Matches the number of a layer or an expert, which has a dot on either side, unlike the 1 of `w1`.
_NUMBER = re.compile(r"(?<=\.)(\d{1,9})(?=\.)")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors whose names differ only in the numbers of layers and experts."""

    pattern: str
    """the common name, where each number that varies is a range, such as `layers.{0..31}.weight`"""
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """The description of a model that `mixtura inspect` prints."""

    model: str
    family: str
    shape: ModelShape
    groups: tuple[TensorGroup, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """a description of each stored tensor that the model does not use, by the tensor's name"""
    check: Check = field(default_factory=Check)
    """the comparison of the weights with their recorded digests"""
    config: Mapping[str, Any] | None = None
    """the config, with Mixtura's keys, of a run, a recipe or a packed folder; None for others"""
    quantisation: str | None = None
    """the method by which the weights of a Hugging Face folder are quantised; None if plain"""
    verified: bool = False
    """whether this call compared the weights with their recorded digests, and found them equal"""

    @property
    def bytes(self) -> int:
        return sum(group.bytes for group in self.groups)

    @property
    def parameters_by_role(self) -> Mapping[Role, int]:
        found: dict[Role, int] = defaultdict(int)
        for weight in self.shape.weights():
            found[weight.role] += weight.parameters
        return dict(found)


def inspect_source(source: "Source") -> Inspection:
    """Describe a Hugging Face folder or a GGUF file, after a check of its tensors.

    Raises CheckpointError if a tensor is missing, misshapen or unexpected, and ConfigError for a
    config that Mixtura does not support.
    """
    from mixtura.checkpoints.expected_tensors import check_tensors
    from mixtura.checkpoints.weight_check import check_of

    family = family_of(source.config)
    shape: DecoderShape = shape_of(family.read(source.config))
    left_out = check_tensors(source, family, family.pieces(shape), values=False)
    return Inspection(
        str(source.path),
        family.model_type,
        shape,
        grouped(source.tensors.values()),
        left_out,
        check_of(source, list(family.pieces(shape)), shape),
        quantisation=source.quantisation,
    )


def inspect_packed(file: "PackedFile") -> Inspection:
    """Describe a packed file from its header alone.

    Raises ConfigError or CheckpointError if the header and the tensors do not match.
    """
    from mixtura.checkpoints.source import StoredTensor
    from mixtura.models.packed_decoder import packed_blueprint

    header = file.header
    shape = packed_blueprint(file).config
    return Inspection(
        str(file.path.parent),
        f"{header.family}, packed in {header.bits} bits by {header.writer}",
        shape,
        grouped(
            StoredTensor(entry.name, entry.shape, entry.format, file.path, entry.bytes)
            for entry in header.tensors
        ),
        check=file.check(shape.roles()),
        config=header.config,
    )


def grouped(tensors: "Iterable[StoredTensor]") -> tuple[TensorGroup, ...]:
    """Group the tensors that share a shape and a dtype, and whose names differ only in numbers."""
    found: dict[tuple[str, tuple[int, ...], str], list[StoredTensor]] = defaultdict(list)
    for tensor in tensors:
        found[(_NUMBER.sub("#", tensor.name), tensor.shape, tensor.dtype)].append(tensor)
    return tuple(
        TensorGroup(
            _pattern([tensor.name for tensor in group]),
            shape,
            dtype,
            len(group),
            sum(tensor.bytes for tensor in group),
        )
        for (_, shape, dtype), group in found.items()
    )


def _pattern(names: list[str]) -> str:
    """Merge names into one, in which each number that varies becomes `{least..greatest}`."""
    pieces = [_NUMBER.split(name) for name in names]
    shown: list[str] = []
    for place, piece in enumerate(pieces[0]):
        numbers = sorted({int(of[place]) for of in pieces}) if place % 2 else []
        whole = len(numbers) > 1
        shown.append(f"{{{numbers[0]}..{numbers[-1]}}}" if whole else piece)
    return "".join(shown)
