"""The mixers of a packed decoder as the fused program takes them: see native/decoder/mixers.h."""

from typing import Any

import torch
from torch import Tensor, nn

from mixtura.engine.program_parts import Parts
from mixtura.engine.rope_tables import RopeTables
from mixtura.kernels.cached_attention import cache_of
from mixtura.kernels.cached_attention.cpu import KEPT
from mixtura.models.attention import (
    Attention,
    GatedAttention,
    LateNormAttention,
    SinkAttention,
)
from mixtura.models.decoder import Block
from mixtura.models.gated_delta import GatedDelta
from mixtura.models.latent_attention import LatentAttention
from mixtura.models.mamba2 import Mamba2
from mixtura.models.recurrent_state import RecurrentLayer
from mixtura.models.short_conv import ShortConv
from mixtura.models.state import KVLayer
from mixtura.packed import PackedLinear


def why_no_mixer(block: Block) -> str | None:
    """The reason why the program cannot compute the block's mixer; None where it can."""
    mixer = block.attention if block.recurrence is None else block.recurrence
    match mixer:
        case LateNormAttention():
            return "a norm of queries and keys after rotation"
        case GatedAttention():
            linears = [mixer.qkv, mixer.output_gate, mixer.out]
        case Attention():
            linears = [mixer.qkv, mixer.out]
        case LatentAttention():
            linears = [mixer.query, mixer.kv_down, mixer.out]
            linears += [] if mixer.query_down is None else [mixer.query_down]
        case ShortConv() | GatedDelta() | Mamba2():
            linears = [mixer.projection, mixer.out]
        case _:
            return f"a {type(mixer).__name__}"
    packed = all(isinstance(linear, PackedLinear) for linear in linears)
    return None if packed else f"a {type(mixer).__name__} that is not packed"


def mixer_of(
    parts: Parts, block: Block, layer: int, kept: KVLayer | RecurrentLayer, angles: RopeTables
) -> Any:
    """The layer's mixer, for which `why_no_mixer` gave None, with what it keeps."""
    if isinstance(kept, RecurrentLayer):
        return _recurrent(parts, block.recurrence, kept)
    cache = cache_of(parts.module, kept.kv)
    match block.attention:
        case Attention() as attention:
            return _grouped(parts, attention, layer, cache, angles)
        case LatentAttention() as attention:
            return _latent(parts, attention, cache, angles)
        case mixer:
            raise AssertionError(f"no program has a {type(mixer).__name__}")


def _recurrent(parts: Parts, mixer: nn.Module | None, kept: RecurrentLayer) -> Any:
    match mixer:
        case ShortConv():
            (state_SWD,) = kept.states
            return parts.module.ShortConv(
                parts.linear(mixer.projection),
                parts.linear(mixer.out),
                parts.floats(mixer.conv.weight.mT),
                parts.floats(mixer.conv.bias),
                mixer.conv.weight.shape[1],
                parts.at(state_SWD),
            )
        case GatedDelta():
            return _gated_delta(parts, mixer, kept)
        case Mamba2():
            return _mamba2(parts, mixer, kept)
        case _:
            raise AssertionError(f"no program has a {type(mixer).__name__}")


def _grouped(
    parts: Parts, attention: Attention, layer: int, cache: object, angles: RopeTables
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
        table.cos_SC.shape[-1],
        cache,
    )
    return parts.module.GroupedAttention(
        over,
        parts.linear(attention.qkv),
        parts.norm(attention.q_norm),
        parts.norm(attention.k_norm),
        shape.norm == "all",
        shape.clip or 0.0,
        parts.linear(attention.output_gate) if isinstance(attention, GatedAttention) else None,
    )


def _gated_delta(parts: Parts, mixer: GatedDelta, kept: RecurrentLayer) -> Any:
    gates, shape = narrowest(mixer.gates.weight), mixer.shape
    *tensors, epsilon, _, _ = mixer.weights()
    return parts.module.GatedDelta(
        parts.linear(mixer.projection),
        parts.linear(mixer.out),
        parts.at(gates),
        KEPT[gates.dtype],
        gates.shape[1],
        [parts.floats(one) for one in tensors],
        [parts.at(state) for state in kept.states],
        [shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim, shape.kernel],
        epsilon,
    )


def _mamba2(parts: Parts, mixer: Mamba2, kept: RecurrentLayer) -> Any:
    steps, shape, weights = narrowest(mixer.steps.weight), mixer.shape, mixer.weights()
    if mixer.steps.bias is not None:
        weights = weights._replace(step_bias_H=weights.step_bias_H + mixer.steps.bias)
    *tensors, epsilon, least_step, most_step, groups = weights
    return parts.module.Mamba2(
        parts.linear(mixer.projection),
        parts.linear(mixer.out),
        parts.at(steps),
        KEPT[steps.dtype],
        steps.shape[1],
        [parts.floats(one) for one in tensors],
        [parts.at(state) for state in kept.states],
        [shape.heads, shape.head_dim, shape.state_dim, groups, shape.kernel],
        [epsilon, least_step, most_step],
    )


def _latent(parts: Parts, attention: LatentAttention, cache: object, angles: RopeTables) -> Any:
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
        cache,
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
