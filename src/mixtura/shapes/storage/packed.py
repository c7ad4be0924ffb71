"""The layout of a packed file: which tensors are packed, in which format, and at which offset.

N output channels and K inputs of a matrix; E experts, H rows of an expert's w_in, D model width,
F expert width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Literal, NamedTuple, Self

from mixtura.errors import ConfigError
from mixtura.shapes.ledger import Saved
from mixtura.shapes.model import ModelShape
from mixtura.shapes.storage.numbers import GROUP, ITEM_BYTES, Bits, Plain, up
from mixtura.shapes.storage.tiles import ALIGNMENT, PAGE, expert_bytes, tiled_bytes

Shape = tuple[int, ...]
TensorKind = Literal["tiles", "experts", "plain"]
"""one packed matrix in tiles; packed FFNs, one after another; or numbers that are not packed"""
Format = Literal["tiles4", "tiles8", "experts4", "experts8", Plain]

_PACKED: Mapping[str, tuple[TensorKind, Bits]] = {
    "tiles4": ("tiles", 4),
    "tiles8": ("tiles", 8),
    "experts4": ("experts", 4),
    "experts8": ("experts", 8),
}
_OUTER = frozenset({"embedding", "head"})
# The names of modules whose matrices are packed; a recurrent mixer has `projection` and `out`.
# Latent attention's kv_up stays plain, because the absorbed form multiplies with parts of it. Gates
# stay plain, because rounding a gate could change the choice of experts.
_MATRICES = _OUTER | {"qkv", "out", "query_down", "query", "kv_down", "projection", "output_gate"}
# Sort keys of attention tensors whose place in the file differs from the ledger's order: sinks come
# first, and norms of queries and keys come last.
_ORDER = {"sinks": -1, "q_norm": 1, "k_norm": 1, "output_gate": 2}


class FFNs(NamedTuple):
    """The shape of a layer's experts, or of one dense FFN (as one expert)."""

    experts: int
    rows: int
    """rows of each expert's w_in"""
    width: int
    expert_width: int

    @property
    def gated(self) -> bool:
        return self.rows == 2 * self.expert_width

    def bytes(self, bits: Bits) -> int:
        return self.experts * expert_bytes(self.width, self.expert_width, bits, self.gated)


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of the packed file, before its format and its offset are set."""

    name: str
    """the name of the plain tensor, of the matrix's weight, or of the module of the FFNs"""
    kind: TensorKind
    shape: Shape
    """[N, K] of a matrix, [E, H, D, F] of FFNs, or the shape of a plain tensor"""

    @property
    def padded(self) -> tuple[int, int] | None:
        """(last dim, its padded size) if packing pads it to a multiple of 32, else None."""
        if self.kind == "plain" or self.shape[-1] % GROUP == 0:
            return None
        return self.shape[-1], up(self.shape[-1], GROUP)

    def bits(self, bits: Bits, head_bits: Bits) -> Bits:
        """`head_bits` for the head and the embedding, `bits` for every other tensor."""
        return head_bits if self.outer else bits

    @property
    def outer(self) -> bool:
        """Whether this tensor belongs to the head or the embedding."""
        return is_outer(self.name)

    def packed_as(self, bits: Bits) -> Format:
        """The format of this packed tensor with weights of `bits` bits."""
        assert self.kind != "plain", "plain numbers have their dtype"
        if self.kind == "tiles":
            return "tiles4" if bits == 4 else "tiles8"
        return "experts4" if bits == 4 else "experts8"

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the model's tensors that are stored in this tensor."""
        if self.kind != "experts":
            return (self.name,)
        return f"{self.name}.w_in", f"{self.name}.w_out"


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the packed file, with its format and its offset from the start of the data."""

    name: str
    format: Format
    shape: Shape
    offset: int
    bytes: int

    @classmethod
    def behind(cls, end: int, name: str, stored_as: Format, shape: Shape) -> Self:
        """Place a tensor at the first allowed offset that is not before `end`."""
        return cls(name, stored_as, shape, up(end, boundary(stored_as)), size_of(stored_as, shape))

    @property
    def end(self) -> int:
        return self.offset + self.bytes

    @property
    def digests(self) -> int:
        """The number of this tensor's digests: one for each FFN in it, or one if it has no FFNs."""
        return self.shape[0] if kind_of(self.format) == "experts" else 1


def is_outer(name: str) -> bool:
    """Whether a tensor of this name belongs to the head or the embedding."""
    return name.partition(".")[0] in _OUTER


def kind_of(stored_as: Format) -> TensorKind:
    return _PACKED[stored_as][0] if stored_as in _PACKED else "plain"


def bits_of(stored_as: Format) -> Bits:
    """The bits of a weight in a packed format."""
    return _PACKED[stored_as][1]


def boundary(stored_as: Format) -> int:
    """The alignment of a tensor's offset: the offset is a multiple of this number of bytes."""
    return PAGE if kind_of(stored_as) == "experts" else ALIGNMENT


def size_of(stored_as: Format, shape: Shape) -> int:
    """Bytes of a tensor of this shape in this format."""
    match stored_as:
        case "tiles4" | "tiles8":
            n, k = shape
            return tiled_bytes(n, k, bits_of(stored_as))
        case "experts4" | "experts8":
            return FFNs(*shape).bytes(bits_of(stored_as))
        case _:
            return prod(shape) * ITEM_BYTES[stored_as]


def planned(tensors: Iterable[tuple[str, Shape]]) -> Iterator[Planned]:
    """The tensors of a packed file, in the order of `tensors`.

    `tensors` has the name and the shape of each tensor of a model. Raises ConfigError if the
    model's width is not a multiple of 32.
    """
    held = dict(tensors)
    for name, shape in held.items():
        module, _, leaf = name.rpartition(".")
        match leaf:
            case "w_in":
                yield _ffns(module, shape, held[f"{module}.w_out"])
            case "w_out":
                # The planned tensor that is yielded at w_in contains w_out too.
                pass
            case "weight" if len(shape) == 2 and module.rpartition(".")[2] in _MATRICES:
                yield Planned(name, "tiles", shape)
            case _:
                yield Planned(name, "plain", shape)


def planned_of(shape: ModelShape) -> list[Planned]:
    """The packed file's tensors, in the order of the file. Raises ConfigError as `planned` does."""
    return list(planned((one.name, one.shape) for one in _in_file_order(shape.tensors())))


def packed_layout(
    shape: ModelShape, bits: Callable[[Planned], Bits], plain: Callable[[str], Plain]
) -> tuple[Placed, ...]:
    """Every tensor of a packed file, in the order of the file.

    `bits` returns the bits of a packed tensor. `plain` returns the dtype of the plain parameter of
    a given name. Raises ConfigError if the model's width is not a multiple of 32.
    """
    dtypes: dict[str, Plain] = {buffer.name: buffer.dtype for buffer in shape.buffers()}
    found: list[Placed] = []
    for one in planned_of(shape):
        if one.kind == "plain":
            stored_as: Format = dtypes.get(one.name) or plain(one.name)
        else:
            stored_as = one.packed_as(bits(one))
        found.append(Placed.behind(data_bytes(found), one.name, stored_as, one.shape))
    return tuple(found)


def data_bytes(layout: Sequence[Placed]) -> int:
    """Bytes of all tensors of the file and of the gaps between them, without the file's header."""
    return layout[-1].end if layout else 0


def _ffns(name: str, w_in: Shape, w_out: Shape) -> Planned:
    experts = w_in[0] if len(w_in) == 3 else 1
    rows, width = w_in[-2:]
    if width % GROUP:
        raise ConfigError(
            f"{name}: a model of width {width} cannot be packed: groups of {GROUP} weights do not "
            f"divide its rows; only widths that are multiples of {GROUP} can"
        )
    return Planned(name, "experts", (experts, rows, width, w_out[-1]))


def _in_file_order(ledger: Iterable[Saved]) -> Iterator[Saved]:
    for _, tensors in groupby(ledger, lambda one: one.name.partition(".attention.")[0]):
        yield from sorted(tensors, key=lambda one: _ORDER.get(_part_of_attention(one.name), 0))


def _part_of_attention(name: str) -> str:
    return name.partition(".attention.")[2].partition(".")[0]
