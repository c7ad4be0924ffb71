"""Makes the pieces that pair a Hugging Face (HF) tensor with tensors of a GGUF file.

In a `Piece` made here `stored` is GGUF's tensor, and `ours` is HF's tensor. E experts, D width, F
expert width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mixtura.shapes.families import Piece

EVERY = slice(None)


@dataclass(frozen=True, slots=True)
class Named:
    """The name and the shape of an HF tensor."""

    name: str
    shape: tuple[int, ...]


def same(one: Named, gguf: str) -> Iterator[Piece]:
    """HF and GGUF have the tensor in the same layout."""
    yield Piece(gguf, one.shape, one.name)


def row_alone(one: Named, gguf: str) -> Iterator[Piece]:
    """HF has a matrix of one row, (1, D), where GGUF has a vector."""
    yield Piece(gguf, one.shape[1:], one.name, at=(0,))


def of_stack(one: Named, gguf: str, expert: int, experts: int) -> Iterator[Piece]:
    """HF has a matrix for each expert, and GGUF a stack of the matrices of all experts."""
    yield Piece(gguf, (experts, *one.shape), one.name, of=(expert,))


def rotated(one: Named, gguf: str, heads: int) -> Iterator[Piece]:
    """The two rows of a pair that RoPE rotates are neighbours in GGUF, half a head apart in HF."""
    rows = one.shape[0] // heads
    view, half = (heads, rows, *one.shape[1:]), rows // 2
    for at, of in ((slice(0, half), slice(0, None, 2)), (slice(half, None), slice(1, None, 2))):
        yield Piece(
            gguf, one.shape, one.name, at=(EVERY, at), of=(EVERY, of), view=view, stored_view=view
        )


def gate_and_up(one: Named, gate: str, up: str) -> Iterator[Piece]:
    """HF has gate and up in one tensor, (E, 2F, D) or (2F, D), with the gate's rows first.

    GGUF has two tensors.
    """
    *stack, both, width = one.shape
    hidden = both // 2
    for name, rows in ((gate, slice(0, hidden)), (up, slice(hidden, None))):
        yield Piece(name, (*stack, hidden, width), one.name, at=(*[EVERY] * len(stack), rows))


def narrowed(piece: Piece) -> tuple[int, Piece] | None:
    """Narrow a piece that fills one index of the first dim of GGUF's tensor.

    Returns this index, and the piece within it. Returns None for a piece that fills more than one
    index.
    """
    if piece.stored_view is not None or not piece.of or not isinstance(piece.of[0], int):
        return None
    return piece.of[0], replace(piece, shape=piece.shape[1:], of=piece.of[1:])
