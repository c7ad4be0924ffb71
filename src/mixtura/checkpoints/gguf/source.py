"""Presents a GGUF file as a checkpoint with Hugging Face's (HF's) config keys and tensors.

Tensors get HF's names, shapes and order of rows. N rows and K columns of a matrix, G = K/32 blocks
of a row, P pairs of dims that RoPE rotates in a head.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures import architecture_of, is_drafting
from mixtura.checkpoints.gguf.block_numbers import K_QUANTS, numbers
from mixtura.checkpoints.gguf.blocks import BITS, groups_bits, unpacked
from mixtura.checkpoints.gguf.counts import check_counts
from mixtura.checkpoints.gguf.header import TensorPlace, read_header
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.checkpoints.gguf.links import narrowed
from mixtura.checkpoints.gguf.metadata import Metadata, nearest
from mixtura.checkpoints.piece_views import in_groups, is_whole, taken
from mixtura.checkpoints.source import Place, Source, StoredTensor
from mixtura.config import Tree
from mixtura.errors import CheckpointError, ConfigError
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import Family, Piece, family_of, shape_of
from mixtura.shapes.storage import GROUP, Bits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mixtura.kernels.packed.groups import Groups

ROPE_FACTORS = "rope_freqs.weight"
GATE = "ffn_gate_inp.weight"
# For each kind whose tensors can be views of the file: numpy's dtype and torch's dtype.
_PLAIN: Mapping[Kind, tuple[str, str]] = {
    Kind.F32: ("<f4", "float32"),
    Kind.F16: ("<f2", "float16"),
    Kind.BF16: ("<i2", "bfloat16"),
}
PlacedPiece = tuple[TensorPlace, Piece]
"""the place of a part of the file, and the piece that pairs this part with an HF tensor"""


class GGUFSource(Source):
    """A GGUF file of a supported architecture; no weight is read when the file is opened.

    Raises CheckpointError for an unusable file; the message names the key or the tensor, and the
    expected value.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.path = path
        self.metadata = Metadata(header.metadata, path)
        places = {place.name: place for place in header.tensors}
        architecture = architecture_of(self.metadata)
        check_counts(self.metadata, header.tensors)
        factors = places.pop(ROPE_FACTORS, None)
        factors_P = None if factors is None else self._numbers(factors)
        config = architecture.config(self.metadata, frozenset(places), factors_P)
        family, shape = _read_as(path, config)
        self._shapes = {piece.stored: piece.shape for piece in family.pieces(shape)}
        links = list(architecture.links(self._shapes, shape, places))
        self._check(links, places)
        self._parts: dict[str, list[PlacedPiece]] = defaultdict(list)
        for link in links:
            self._parts[link.ours].append(_part(places[link.stored], link))
        self._dtype_name = _common_dtype(places.values())
        self.config = {**config, "dtype": self._dtype_name}

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {name: self._stored(name, parts) for name, parts in self._parts.items()}

    def read(self, name: str) -> "Tensor":
        """Read an HF tensor in the dtype `dtype_of(name)`.

        The result is a view of the file, mapped copy-on-write, if the tensor is stored in that
        dtype, in HF's order and without gaps. Raises CheckpointError for an unknown name, or for a
        kind that cannot be dequantised.
        """
        import torch

        parts, dtype = self._parts_of(name), self.dtype_of(name)
        if len(parts) == 1 and is_whole(parts[0][1]):
            return self._tensor(parts[0][0]).view(self._shapes[name]).to(dtype)
        whole, unpacked_parts = torch.empty(self._shapes[name], dtype=dtype), {}
        for place, piece in parts:
            if place.start not in unpacked_parts:
                unpacked_parts[place.start] = self._tensor(place)
            target, part = taken(whole, unpacked_parts[place.start], piece)
            target.copy_(part)
        return whole

    def dtype_of(self, name: str) -> "torch.dtype":
        """Return the dtype that a tensor is read in.

        It is fp32 for gates of routers. For all other tensors it is the dtype that all matrices are
        stored in, or fp32 if their dtypes differ or any matrix is quantised.
        """
        import torch

        return getattr(torch, self._dtype_name_of(name))

    def _dtype_name_of(self, name: str) -> str:
        gate = all(place.name.endswith(GATE) for place, _ in self._parts_of(name))
        return "float32" if gate else self._dtype_name

    def place_of(self, name: str) -> Place | None:
        (place, piece), *others = self._parts_of(name)
        plain = _PLAIN.get(place.kind)
        if others or not is_whole(piece) or plain is None or plain[1] != self._dtype_name_of(name):
            return None
        return Place(self.path, place.start)

    @property
    def quantised(self) -> bool:
        """Whether any tensor of the model is stored in a kind other than F32, F16 and BF16."""
        return any(place.kind not in _PLAIN for parts in self._parts.values() for place, _ in parts)

    def stored_bits(self, name: str) -> Bits:
        return max(groups_bits(place.kind) for place, _ in self._parts_of(name))

    def groups(self, name: str) -> "Groups | None":
        """Read a Q4_0 or Q8_0 tensor as integers and scales, in HF's order of rows.

        All dims but the last are flattened to rows. Returns None for other kinds, if a piece does
        not take whole rows, or if a number is -128, which groups cannot hold.
        """
        kinds = {place.kind for place, _ in self._parts_of(name)}
        if len(kinds) > 1 or not kinds <= set(BITS):
            return None
        return self._grouped(
            name,
            lambda place: unpacked(self._raw(place).reshape(-1, place.bytes_of_row), place.kind),
        )

    def requantised(self, name: str, bits: Bits) -> "Groups | None":
        """Quantise a tensor of K-quants again, by the rules of `Source.requantised`."""
        import torch

        from mixtura.kernels.packed.groups import quantise_blocks

        if not {place.kind for place, _ in self._parts_of(name)} <= K_QUANTS:
            return None

        def quantised(place: TensorPlace) -> "Groups | None":
            rows = torch.from_numpy(self._raw(place).reshape(-1, place.bytes_of_row))
            return quantise_blocks(rows, int(place.kind), place.shape[-1], bits)

        return self._grouped(name, quantised)

    def _grouped(
        self, name: str, of_place: "Callable[[TensorPlace], Groups | None]"
    ) -> "Groups | None":
        """Assemble the groups of an HF tensor from the groups of its places in the file.

        Returns None if a piece does not take whole rows, or if `of_place` returns None for a place.
        """
        import torch

        from mixtura.kernels.packed.groups import Groups

        parts, rows = self._parts_of(name), self._shapes[name]
        pieces = [in_groups(piece) for _, piece in parts]
        if None in pieces:
            return None
        if len(parts) == 1 and is_whole(parts[0][1]):
            return of_place(parts[0][0])
        q = torch.empty(rows, dtype=torch.int8)
        scale = torch.empty(*rows[:-1], rows[-1] // GROUP, dtype=torch.float16)
        found: dict[int, Groups] = {}
        for (place, _), piece in zip(parts, pieces, strict=True):
            stored = found.get(place.start) or of_place(place)
            if stored is None or piece is None:
                return None
            found[place.start] = stored
            for whole, part in ((q, stored.q_NK), (scale, stored.scale_NG)):
                own = part.view(*place.shape[:-1], -1)
                target, filling = taken(whole, own, piece)
                target.copy_(filling)
        bits = next(iter(found.values())).bits
        return Groups(q.flatten(0, -2), scale.flatten(0, -2), bits)

    def _parts_of(self, name: str) -> list[PlacedPiece]:
        if name not in self._parts:
            raise nearest(name, self._parts)
        return self._parts[name]

    def _stored(self, name: str, parts: list[PlacedPiece]) -> StoredTensor:
        size = sum({place.start: place.bytes for place, _ in parts}.values())
        kind = parts[0][0].kind.name
        return StoredTensor(name, self._shapes[name], kind, self.path, size)

    def _tensor(self, place: TensorPlace) -> "Tensor":
        """Read a GGUF tensor in its stored dtype, or in fp32 if it is quantised."""
        import torch

        if place.kind in _PLAIN:
            dtype, name = _PLAIN[place.kind]
            plain = torch.from_numpy(self._mapped(place, dtype, place.shape))
            return plain.view(getattr(torch, name))
        return torch.from_numpy(self._numbers(place))

    def _numbers(self, place: TensorPlace) -> NDArray[np.float32]:
        """Read a GGUF tensor in fp32."""
        raw = self._raw(place).reshape(-1, place.bytes_of_row)
        try:
            return numbers(raw, place.kind).reshape(place.shape)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {place.name} is {place.kind.name}, which cannot be "
                "dequantised; take a file of a common quantisation, such as Q4_K_M or Q8_0"
            ) from error

    def _raw(self, place: TensorPlace) -> NDArray[np.uint8]:
        return self._mapped(place, "u1", (place.bytes,))

    def _mapped(self, place: TensorPlace, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        # Every tensor has its own mapping, so that freeing the tensor frees its pages.
        # The mapping is copy-on-write, so that training in place does not change the file.
        try:
            return np.memmap(self.path, dtype, "c", place.start, shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: tensor {place.name} cannot be read ({error}); was the file "
                "changed since it was opened?"
            ) from error

    def _check(self, expected: Iterable[Piece], places: Mapping[str, TensorPlace]) -> None:
        """Raise CheckpointError for tensors that are missing, misshapen or unexpected."""
        left = {name: one for name, one in places.items() if not is_drafting(name, self.metadata)}
        for name, shape in {one.stored: one.shape for one in expected}.items():
            place = left.pop(name, None)
            if place is None:
                raise CheckpointError(
                    f"{self.path}: lacks the tensor {name}, expected of shape {shape} by its "
                    "metadata"
                )
            if place.shape != shape:
                raise CheckpointError(
                    f"{self.path}: tensor {name} has shape {place.shape}, expected {shape} by its "
                    "metadata"
                )
        if left:
            raise CheckpointError(
                f"{self.path}: has {len(left)} tensors that a {self.metadata.architecture} model "
                f"has no place for, the first being {min(left)}; its architecture is another"
            )


def _read_as(path: Path, config: Tree) -> tuple[Family, DecoderShape]:
    """Read the HF family and the shape from a config.

    Raises ConfigError, naming the file, if the config is not supported.
    """
    try:
        family = family_of(config)
        return family, shape_of(family.read(config))
    except ConfigError as error:
        raise ConfigError(f"{path}: its metadata, as {error}") from error


def _part(place: TensorPlace, piece: Piece) -> PlacedPiece:
    """If a piece takes one matrix of a stack, narrow the stack's place to this matrix."""
    found = narrowed(piece)
    if found is None:
        return place, piece
    number, within = found
    size = place.bytes // place.shape[0]
    own = replace(place, shape=place.shape[1:], start=place.start + number * size, bytes=size)
    return own, within


def _common_dtype(places: Iterable[TensorPlace]) -> str:
    """The dtype that all matrices are stored in; fp32 if their dtypes differ or any is quantised.

    llama.cpp stores vectors, biases and routers in fp32, so their dtype does not count.
    """
    kinds = {place.kind for place in places if in_file_kind(place.name, place.shape)}
    dtypes = {_PLAIN[kind][1] if kind in _PLAIN else "float32" for kind in kinds}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def in_file_kind(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is stored in the kind that was chosen for the file.

    Vectors, biases and gates are stored in fp32 in every file.
    """
    return len(shape) > 1 and not name.endswith((".bias", GATE))
