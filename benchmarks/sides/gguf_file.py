"""Writes a GGUF file of a shape, with random Q4_0 weights and a vocabulary that all sides can load.

E experts, F expert width, D width, V vocabulary.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray

from sides.shapes import BYTES_OF_GROUP, GROUP, Shape

CONTEXT = 4096
_SEED = 0
_STD = 0.02
# The standard deviation of random integers from -8 to 7 after a random sign.
_STD_OF_QUANTS = 4.636
_GROUPS_AT_A_TIME = 1 << 21


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the file: fp32 if `plain`, else Q4_0. The last dim of `shape` is contiguous."""

    name: str
    shape: tuple[int, ...]
    plain: bool = False


def gguf_file(shape: Shape, folder: Path) -> Path:
    """The path of the shape's file in `folder`. The file is written if it does not exist."""
    name = f"{shape.name}-{shape.architecture}-{shape.layers}-{shape.vocabulary}.gguf"
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        _write(shape, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def places(shape: Shape) -> Iterator[Place]:
    """Yield the tensors in the order in which a forward pass reads them."""
    width, rows = shape.width, shape.heads * shape.head_dim
    keys, experts, ffn = shape.kv_heads * shape.head_dim, shape.experts, shape.expert_width
    yield Place("token_embd.weight", (shape.vocabulary, width))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield Place(f"{block}attn_norm.weight", (width,), plain=True)
        yield Place(f"{block}attn_q.weight", (rows, width))
        yield Place(f"{block}attn_k.weight", (keys, width))
        yield Place(f"{block}attn_v.weight", (keys, width))
        yield Place(f"{block}attn_output.weight", (width, rows))
        if shape.architecture != "llama":
            per_head = shape.architecture == "qwen3moe"
            for name, size in (("q", rows), ("k", keys)):
                normed = shape.head_dim if per_head else size
                yield Place(f"{block}attn_{name}_norm.weight", (normed,), plain=True)
        yield Place(f"{block}ffn_norm.weight", (width,), plain=True)
        yield Place(f"{block}ffn_gate_inp.weight", (experts, width), plain=True)
        yield Place(f"{block}ffn_gate_exps.weight", (experts, ffn, width))
        yield Place(f"{block}ffn_up_exps.weight", (experts, ffn, width))
        yield Place(f"{block}ffn_down_exps.weight", (experts, width, ffn))
    yield Place("output_norm.weight", (width,), plain=True)
    yield Place("output.weight", (shape.vocabulary, width))


def _write(shape: Shape, path: Path) -> None:
    writer = GGUFWriter(path, shape.architecture)
    _describe(writer, shape)
    _add_vocabulary(writer, shape.vocabulary)
    for place in places(shape):
        _announce(writer, place)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.Generator(np.random.SFC64(_SEED))
    for place in places(shape):
        writer.write_tensor_data(_plain(place, random) if place.plain else _packed(place, random))
    writer.close()


def _describe(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name(f"{shape.name} with random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.expert_width)
    writer.add_expert_feed_forward_length(shape.expert_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_vocab_size(shape.vocabulary)


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    """A vocabulary like GPT-2's: an end token, every byte, one merge, and unused tokens.

    Loaders require an end token, all bytes and a merge.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256, 512 - len(plain))
    opening = ["<end>", *map(chr, plain), *map(chr, others), "ab"]
    tokens = [*opening, *(f"t{number}" for number in range(len(opening), size))]
    kinds = [TokenType.CONTROL, *[TokenType.NORMAL] * (size - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _announce(writer: GGUFWriter, place: Place) -> None:
    if place.plain:
        size = 4 * int(np.prod(place.shape))
        writer.add_tensor_info(place.name, place.shape, np.dtype(np.float32), size)
        return
    stored = (*place.shape[:-1], place.shape[-1] // GROUP * BYTES_OF_GROUP)
    writer.add_tensor_info(
        place.name,
        stored,
        np.dtype(np.uint8),
        int(np.prod(stored)),
        raw_dtype=GGMLQuantizationType.Q4_0,
    )


def _plain(place: Place, random: np.random.Generator) -> NDArray[np.float32]:
    """The weights of a norm are 1, those of a router are random."""
    if len(place.shape) == 1:
        return np.ones(place.shape, np.float32)
    return random.standard_normal(place.shape, np.float32) * np.float32(place.shape[-1] ** -0.5)


def _packed(place: Place, random: np.random.Generator) -> NDArray[np.uint8]:
    """Random blocks, each with an fp16 scale and 32 4-bit numbers; quantising would take minutes.

    The sign of a scale is random too. Numbers are from -8 to 7, with a mean below 0. With scales of
    one sign all weights would have the same bias, all tokens would become similar, and all would go
    to the same experts.
    """
    groups = int(np.prod(place.shape)) // GROUP
    blocks = np.empty((groups, BYTES_OF_GROUP), np.uint8)
    for start in range(0, groups, _GROUPS_AT_A_TIME):
        part = blocks[start : start + _GROUPS_AT_A_TIME]
        drawn = random.integers(0, 256, (len(part), BYTES_OF_GROUP), np.uint8)
        sizes = _STD / _STD_OF_QUANTS * (0.75 + drawn[:, 0] / 510)
        signs = np.where(drawn[:, 1] & 1, 1, -1)
        part[:] = drawn
        part[:, :2] = (sizes * signs).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks
