"""Where a Hugging Face tensor lies in a GGUF file: the pieces that most architectures share.

In a `Piece` made here `stored` is GGUF's tensor and `ours` Hugging Face's. E experts, D width, F
expert width, H heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mixtura.shapes.families import Piece

EVERY = slice(None)


@dataclass(frozen=True, slots=True)
class Named:
    """A Hugging Face tensor."""

    name: str
    shape: tuple[int, ...]


def same(one: Named, gguf: str) -> Iterator[Piece]:
    yield Piece(gguf, one.shape, one.name)


def row_alone(one: Named, gguf: str) -> Iterator[Piece]:
    """HF has a matrix of one row, (1, D), where GGUF has a vector."""
    yield Piece(gguf, one.shape[1:], one.name, at=(0,))


def of_stack(one: Named, gguf: str, expert: int, experts: int) -> Iterator[Piece]:
    """One expert's matrix, in GGUF's stack of all experts."""
    yield Piece(gguf, (experts, *one.shape), one.name, of=(expert,))


def rotated(one: Named, gguf: str, heads: int) -> Iterator[Piece]:
    """Rows that RoPE rotates in pairs: GGUF has a pair side by side, HF half a head apart."""
    rows = one.shape[0] // heads
    view, half = (heads, rows, *one.shape[1:]), rows // 2
    for at, of in ((slice(0, half), slice(0, None, 2)), (slice(half, None), slice(1, None, 2))):
        yield Piece(
            gguf, one.shape, one.name, at=(EVERY, at), of=(EVERY, of), view=view, stored_view=view
        )


def gate_and_up(one: Named, gate: str, up: str) -> Iterator[Piece]:
    """(E, 2F, D) or (2F, D), the gate's rows first; GGUF has two tensors."""
    *stack, both, width = one.shape
    hidden = both // 2
    for name, rows in ((gate, slice(0, hidden)), (up, slice(hidden, None))):
        yield Piece(name, (*stack, hidden, width), one.name, at=(*[EVERY] * len(stack), rows))


def narrowed(piece: Piece) -> tuple[int, Piece] | None:
    """The index of GGUF's first dim that a piece lies in, and the piece there; None for several."""
    if piece.stored_view is not None or not piece.of or not isinstance(piece.of[0], int):
        return None
    return piece.of[0], replace(piece, shape=piece.shape[1:], of=piece.of[1:])
