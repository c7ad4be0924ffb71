"""What is in a checkpoint, from its config and its tensors' names and shapes.

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

# The number of a layer or an expert: between dots, unlike the 1 in w1.
_NUMBER = re.compile(r"(?<=\.)(\d{1,9})(?=\.)")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors whose names differ only in the numbers of layers and experts."""

    pattern: str
    """with the numbers' ranges in braces"""
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `mixtura inspect` shows."""

    model: str
    family: str
    shape: ModelShape
    groups: tuple[TensorGroup, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """stored tensors that the family leaves out, by name, and what each is"""
    check: Check = field(default_factory=Check)
    """of the weights by their digests"""
    config: Mapping[str, Any] | None = None
    """all that is recorded about the model, where that is more than its shape"""
    verified: bool = False
    """whether all weights were read just now and fit their digests"""

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
    """Checks the tensors as loading does, and raises what loading raises."""
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
    )


def inspect_packed(file: "PackedFile") -> Inspection:
    """What the header states. Raises what opening the file raises."""
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
    """One group for all tensors of one shape and dtype whose names differ only in numbers."""
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
    """One name for all: each number that varies becomes {least..most}."""
    pieces = [_NUMBER.split(name) for name in names]
    shown: list[str] = []
    for place, piece in enumerate(pieces[0]):
        numbers = sorted({int(of[place]) for of in pieces}) if place % 2 else []
        whole = len(numbers) > 1
        shown.append(f"{{{numbers[0]}..{numbers[-1]}}}" if whole else piece)
    return "".join(shown)
