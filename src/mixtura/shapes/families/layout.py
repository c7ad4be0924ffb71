"""Pieces in the layout that most families share: Llama's names, and a tensor for each projection.

A piece is a part of a stored tensor, and the part of Mixtura's tensor that it fills.
"""

from collections.abc import Iterator

from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape, NormShape
from mixtura.shapes.families.family import Piece

GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")


def norm_pieces(width: int, norm: NormShape, stored: str, ours: str) -> Iterator[Piece]:
    """The pieces of one norm."""
    for weight in norm.weights(width, ""):
        suffix = weight.name
        yield Piece(f"{stored}{suffix}", weight.shape, f"{ours}{suffix}")


def outer_pieces(shape: DecoderShape, stored: str = "model.") -> Iterator[Piece]:
    """The pieces of embedding, last norm and head.

    A tied head is stored under the embedding's name.
    """
    size = (shape.vocabulary, shape.width)
    table = "head.weight" if shape.tied_head else "embedding.weight"
    yield Piece(f"{stored}embed_tokens.weight", size, table)
    yield from norm_pieces(shape.width, shape.norm, f"{stored}norm", "norm")
    if not shape.tied_head:
        yield Piece("lm_head.weight", size, "head.weight")
    if shape.head_bias:
        yield Piece("lm_head.bias", (shape.vocabulary,), "head.bias")


def attention_pieces(
    shape: DecoderShape, attention: AttentionShape, stored: str, ours: str
) -> Iterator[Piece]:
    """The pieces of grouped-query attention.

    Mixtura's `qkv` has the rows of q, then the rows of k, then the rows of v.
    """
    start = 0
    for name, rows in zip(("q_proj", "k_proj", "v_proj"), attention.projected, strict=True):
        at = (slice(start, start + rows),)
        yield Piece(f"{stored}{name}.weight", (rows, shape.width), f"{ours}qkv.weight", at)
        if attention.input_bias:
            yield Piece(f"{stored}{name}.bias", (rows,), f"{ours}qkv.bias", at)
        start += rows
    queries, keys, _ = attention.projected
    if attention.norm is not None:
        sizes = (queries, keys) if attention.norm == "all" else (attention.head_dim,) * 2
        for name, size in zip(("q_norm", "k_norm"), sizes, strict=True):
            yield Piece(f"{stored}{name}.weight", (size,), f"{ours}{name}.weight")
    if attention.sinks:
        yield Piece(f"{stored}sinks", (attention.heads,), f"{ours}sinks")
    yield Piece(f"{stored}o_proj.weight", (shape.width, queries), f"{ours}out.weight")
    if attention.output_bias:
        yield Piece(f"{stored}o_proj.bias", (shape.width,), f"{ours}out.bias")


def ffn_pieces(
    width: int,
    hidden: int,
    stored: str,
    ours: str,
    names: tuple[str, str, str] = GATE_UP_DOWN,
    expert: int | None = None,
) -> Iterator[Piece]:
    """The pieces of a gated FFN, or of the expert with the number `expert`.

    Mixtura's `w_in` has the rows of gate, then the rows of up. Its `w_out` has the rows of down.
    """
    gate, up, down = names
    of_expert = () if expert is None else (expert,)
    for name, start in ((gate, 0), (up, hidden)):
        at = (*of_expert, slice(start, start + hidden))
        yield Piece(f"{stored}{name}.weight", (hidden, width), f"{ours}w_in", at)
    yield Piece(f"{stored}{down}.weight", (width, hidden), f"{ours}w_out", of_expert)
