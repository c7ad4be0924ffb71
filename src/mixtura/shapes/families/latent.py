"""Converts DeepSeek's config keys and tensor names of latent attention to Mixtura's, and back."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mixtura.config import Tree
from mixtura.shapes.attention import LatentAttentionShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.rotary import read_rope, rope_keys, write_rope, yarn_size


def read_latent(keys: Keys, config: Mapping[str, Any], family: str) -> Tree:
    """The attention section of Mixtura's decoder config, as plain data.

    Raises ConfigError for missing keys, and for unsupported values.
    """
    heads = keys.integer("num_attention_heads")
    # Each head has keys and values of its own, so both counts of heads must be equal.
    keys.expect("num_key_value_heads", heads, None)
    bias = keys.flag("attention_bias")
    nope, rope_dim = keys.integer("qk_nope_head_dim"), keys.integer("qk_rope_head_dim")
    rope = read_rope(config, family)
    return {
        "kind": "latent",
        "heads": heads,
        "query_rank": keys.integer("q_lora_rank", None),
        "kv_rank": keys.integer("kv_lora_rank"),
        "nope_dim": nope,
        "turning_dim": rope_dim,
        "value_dim": keys.integer("v_head_dim"),
        "input_bias": bias,
        "output_bias": bias,
        "scale": _scale(config, rope["rope_scaling"], nope + rope_dim),
        **rope,
    }


def write_latent(attention: Mapping[str, Any]) -> Tree:
    """The keys of a config.json for the attention section of Mixtura's decoder config."""
    rope = {**write_rope(attention), **_mscales(attention)}
    return {
        "num_attention_heads": attention["heads"],
        "num_key_value_heads": attention["heads"],
        "q_lora_rank": attention["query_rank"],
        "kv_lora_rank": attention["kv_rank"],
        "qk_nope_head_dim": attention["nope_dim"],
        "qk_rope_head_dim": attention["turning_dim"],
        "v_head_dim": attention["value_dim"],
        "attention_bias": attention["input_bias"],
        "rope_theta": attention["rope_base"],
        "rope_parameters": rope,
    }


def latent_pieces(
    width: int, attention: LatentAttentionShape, stored: str, ours: str, *, interleaved: bool
) -> Iterator[Piece]:
    """The pieces of one layer's attention.

    `interleaved`: whether the two rows of a stored RoPE pair are neighbours. In Mixtura's decoder
    the two rows are half of `rope_dim` apart.
    """
    rank, latent = attention.query_rank, attention.kv_rank
    rope_dim = attention.rope_dim if interleaved else 0
    if rank is not None:
        yield Piece(f"{stored}q_a_proj.weight", (rank, width), f"{ours}query_down.weight")
        if attention.input_bias:
            yield Piece(f"{stored}q_a_proj.bias", (rank,), f"{ours}query_down.bias")
        yield Piece(f"{stored}q_a_layernorm.weight", (rank,), f"{ours}query_norm.weight")
    name = "q_proj" if rank is None else "q_b_proj"
    size = (attention.heads * attention.query_dim, rank or width)
    whole = Piece(f"{stored}{name}.weight", size, f"{ours}query.weight")
    yield from _rotated(whole, attention.heads, rope_dim)
    down = (latent + attention.rope_dim, width)
    whole = Piece(f"{stored}kv_a_proj_with_mqa.weight", down, f"{ours}kv_down.weight")
    yield from _rotated(whole, 1, rope_dim)
    if attention.input_bias:
        whole = Piece(f"{stored}kv_a_proj_with_mqa.bias", down[:1], f"{ours}kv_down.bias")
        yield from _rotated(whole, 1, rope_dim)
    yield Piece(f"{stored}kv_a_layernorm.weight", (latent,), f"{ours}kv_norm.weight")
    projected = attention.heads * (attention.nope_dim + attention.value_dim)
    yield Piece(f"{stored}kv_b_proj.weight", (projected, latent), f"{ours}kv_up.weight")
    values = attention.heads * attention.value_dim
    yield Piece(f"{stored}o_proj.weight", (width, values), f"{ours}out.weight")
    if attention.output_bias:
        yield Piece(f"{stored}o_proj.bias", (width,), f"{ours}out.bias")


def _rotated(whole: Piece, heads: int, rope_dim: int) -> Iterator[Piece]:
    """The pieces of a tensor whose heads end in `rope_dim` rows that RoPE rotates in pairs.

    Stored pairs are the rows (2i, 2i + 1), and Mixtura's pairs are the rows (i, i + rope_dim / 2).
    """
    if not rope_dim:
        yield whole
        return
    rows = whole.shape[0] // heads
    view = (heads, rows, *whole.shape[1:])
    still, half = rows - rope_dim, rope_dim // 2
    spans = [
        (slice(0, still), slice(0, still)),
        (slice(still, still + half), slice(still, rows, 2)),
        (slice(still + half, rows), slice(still + 1, rows, 2)),
    ]
    for at, of in spans:
        yield Piece(
            whole.stored,
            whole.shape,
            whole.ours,
            at=(slice(None), at),
            of=(slice(None), of),
            view=view,
            stored_view=view,
        )


def _scale(config: Mapping[str, Any], scaling: Tree | None, query_dim: int) -> float | None:
    """The factor of attention scores: yarn_size(factor, mscale_all_dim)^2 / sqrt(query_dim).

    None if the factor is the default, 1 / sqrt(query_dim).
    """
    keys = rope_keys(Keys(config, "latent"))
    share = keys.number("mscale_all_dim", 0.0)
    if scaling is None or share <= 0:
        return None
    size = yarn_size(keys.number("factor", scaling.get("factor", 1.0)), share)
    return None if size == 1 else size**2 * query_dim**-0.5


def _mscales(attention: Mapping[str, Any]) -> Tree:
    """The keys `mscale_all_dim` and `mscale`, from `scale` and YaRN's amplitude."""
    scaling, scale = attention["rope_scaling"], attention["scale"]
    if scale is None or scaling is None or scaling.get("factor", 1) <= 1:
        return {}
    factor = scaling["factor"]
    size = math.sqrt(scale * math.sqrt(attention["nope_dim"] + attention["turning_dim"]))
    whole = {"mscale_all_dim": _share(size, factor)}
    if scaling["kind"] != "yarn":
        return whole
    return {**whole, "mscale": _share(scaling["amplitude"] * size, factor)}


def _share(size: float, factor: float) -> float:
    """The `share` for which `yarn_size` is `size`, rounded because configs have short decimals."""
    return round((size - 1) / (0.1 * math.log(factor)), 12)
