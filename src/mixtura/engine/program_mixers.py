"""The mixers of a packed decoder as the fused program takes them: see native/decoder/mixers.h."""

from typing import Any

import torch
from torch import Tensor, nn

from mixtura.engine.program_parts import Parts
from mixtura.engine.rope_tables import RopeTables
from mixtura.kernels.cached_attention.cpu import KEPT
from mixtura.models.attention import Attention, SinkAttention
from mixtura.models.decoder import Block
from mixtura.models.latent_attention import LatentAttention
from mixtura.packed import PackedLinear


def why_no_mixer(mixer: nn.Module) -> str | None:
    """The reason why the program cannot compute this mixer; None where it can."""
    match mixer:
        case Attention():
            linears = [mixer.qkv, mixer.out]
        case LatentAttention():
            linears = [mixer.query, mixer.kv_down, mixer.out]
            linears += [] if mixer.query_down is None else [mixer.query_down]
        case _:
            return f"a {type(mixer).__name__}"
    packed = all(isinstance(linear, PackedLinear) for linear in linears)
    return None if packed else "attention that is not packed"


def mixer_of(parts: Parts, block: Block, layer: int, kept: object, angles: RopeTables) -> Any:
    """The layer's mixer, for which `why_no_mixer` gave None; `kept` is its cache."""
    match block.attention:
        case Attention() as attention:
            return _grouped(parts, attention, layer, kept, angles)
        case LatentAttention() as attention:
            return _latent(parts, attention, kept, angles)
        case mixer:
            raise AssertionError(f"no program has a {type(mixer).__name__}")


def _grouped(
    parts: Parts, attention: Attention, layer: int, kept: object, angles: RopeTables
) -> Any:
    shape = attention.shape
    table = angles.by_base[shape.local_base_of(layer)]
    over = parts.module.CachedHeads(
        parts.linear(attention.out),
        shape.heads,
        shape.scale or shape.head_dim**-0.5,
        shape.window_of(layer) or 0,
        parts.floats(attention.sinks if isinstance(attention, SinkAttention) else None),
        parts.floats(table.cos_SC),
        parts.floats(table.sin_SP),
        shape.rope_dim,
        kept,
    )
    return parts.module.GroupedAttention(
        over,
        parts.linear(attention.qkv),
        parts.norm(attention.q_norm),
        parts.norm(attention.k_norm),
        shape.norm == "all",
        shape.clip or 0.0,
    )


def _latent(parts: Parts, attention: LatentAttention, kept: object, angles: RopeTables) -> Any:
    shape, table = attention.shape, angles.by_base[None]
    over = parts.module.CachedHeads(
        parts.linear(attention.out),
        shape.heads,
        attention.scale,
        0,
        0,
        parts.floats(table.cos_SC),
        parts.floats(table.sin_SP),
        shape.rope_dim,
        kept,
    )
    kv_up = narrowest(attention.kv_up.weight)
    return parts.module.LatentAttention(
        over,
        None if attention.query_down is None else parts.linear(attention.query_down),
        parts.norm(attention.query_norm),
        parts.linear(attention.query),
        parts.linear(attention.kv_down),
        parts.norm(attention.kv_norm),
        parts.at(kv_up),
        KEPT[kv_up.dtype],
        shape.nope_dim,
        shape.value_dim,
    )


def narrowest(weight: Tensor) -> Tensor:
    """In bf16 where that changes no number, so that half the bytes are read; else in fp32."""
    rounded = weight.detach().bfloat16()
    return rounded if torch.equal(rounded.float(), weight.float()) else weight.detach().float()
