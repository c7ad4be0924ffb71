"""Torch ops for attention over cached keys and values, computed by compiled kernels on a CPU.

On a GPU the ops use torch's own operations. A row is one token of a sequence. A slot is the place
of one sequence in the cache. R rows, A query heads, G key-value heads, H = A/G query heads that
share a key, C key dim, V value dim, L positions that one row attends to.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from mixtura.kernels.cached_attention.naive import LayerKV, append_naive, cached_attention_naive
from mixtura.kernels.cached_attention.torch import cached_attention_torch
from mixtura.kernels.native import LIBRARY, InstructionSet, native, number_of
from mixtura.kernels.phase import PHASES, Phase

# The number of each cache dtype in native/attention/kernels.h.
KEPT = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


def append(
    cache: LayerKV,
    k_RGC: Tensor,
    v_RGV: Tensor | None,
    slot_R: Tensor,
    position_R: Tensor,
    kernels: InstructionSet = "auto",
) -> None:
    """Store each row's key and value in the cache, with the same bits as the naive twin.

    Keys and values are fp32 or bf16, slots and positions int64. Raises IndexError for a slot or a
    position outside the cache.
    """
    rows = (k_RGC, v_RGV, slot_R, position_R)
    torch.ops.mixtura.append_to_cache(*_parts(cache), *rows, kernels)


def cached_attention(
    q_RAC: Tensor,
    cache: LayerKV,
    slot_R: Tensor,
    position_R: Tensor,
    scale: float,
    phase: Phase,
    window: int | None = None,
    sinks_A: Tensor | None = None,
    kernels: InstructionSet = "auto",
) -> Tensor:
    """out_RAV in fp32: row r attends to positions 0..position_R[r] of its slot, or to the last
    `window` of these positions.

    Rows may belong to any slots: one row of each sequence in decode, several rows in verify, and
    chunks of sequences in prefill. With AMX, products over a bf16 or int8 cache are computed in
    bf16 in prefill, and in the other phases if enough query heads share a key. A row's result
    depends only on the row, its slot and the phase: positions are processed in fixed blocks. Decode
    and verify also divide positions into fixed splits, whose results are combined in order.
    `sinks_A` are logits that take part in each head's softmax without a value (gpt-oss). Raises
    IndexError for a slot or a position outside the cache, and ConfigError for an instruction set in
    `kernels` that this machine does not offer.
    """
    rows = (q_RAC, slot_R, position_R)
    how = (scale, phase, window or 0, sinks_A, cache.values.shape[3], kernels)
    return torch.ops.mixtura.cached_attention(*_parts(cache), *rows, *how)


_Parts = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def _parts(cache: LayerKV) -> _Parts:
    """The tensors of a cache: keys, values, and the scales of both.

    Values and their scales are None if values are stored in keys.
    """
    if cache.values_in_keys:
        return cache.keys, None, cache.key_scales, None
    return cache.keys, cache.values, cache.key_scales, cache.value_scales


def _whole(
    keys: Tensor,
    values: Tensor | None,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    value_dim: int,
) -> LayerKV:
    """The reverse of `_parts`."""
    if values is None:
        inner = keys[..., :value_dim]
        return LayerKV(keys, inner, key_scales, key_scales, values_in_keys=True)
    return LayerKV(keys, values, key_scales, value_scales)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def native_cache(module: Any, parts: _Parts, value_dim: int) -> Any:
    """The compiled module's view of the cache; the caller must keep the tensors alive."""
    keys, values, key_scales, value_scales = parts
    kept = [part for part in parts if part is not None]
    assert all(part.is_contiguous() for part in kept), "the kernels read no strides"
    slots, heads, capacity, key_dim = keys.shape
    return module.layer_cache(
        keys.data_ptr(),
        _address(keys if values is None else values),
        _address(key_scales),
        _address(key_scales if values is None else value_scales),
        KEPT[keys.dtype],
        slots,
        heads,
        capacity,
        key_dim,
        value_dim,
    )


def cache_of(module: Any, cache: LayerKV) -> Any:
    """The compiled module's view of a `LayerKV`; the caller must keep its tensors alive."""
    return native_cache(module, _parts(cache), cache.values.shape[3])


def _append(
    keys: Tensor,
    values: Tensor | None,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    k_RGC: Tensor,
    v_RGV: Tensor | None,
    slot_R: Tensor,
    position_R: Tensor,
    kernels: InstructionSet,
) -> None:
    module, parts = native(), (keys, values, key_scales, value_scales)
    assert (values is None) == (v_RGV is None), "values are kept where there are any"
    value_dim = keys.shape[3] if values is None else values.shape[3]
    if module is None:
        return append_naive(_whole(*parts, value_dim), k_RGC, v_RGV, slot_R, position_R)
    rows, (_, heads, _, key_dim) = len(slot_R), keys.shape
    k_RGC = k_RGC.float().contiguous()
    v_RGV = None if v_RGV is None else v_RGV.float().contiguous()
    # These names keep the tensors alive until the call returns; an address alone does not.
    slot_R, position_R = slot_R.contiguous(), position_R.contiguous()
    _check_rows(k_RGC, (rows, heads, key_dim), slot_R, position_R)
    assert v_RGV is None or v_RGV.shape == (rows, heads, value_dim), "one value for each key"
    module.append(
        native_cache(module, parts, value_dim),
        k_RGC.data_ptr(),
        _address(v_RGV),
        rows,
        slot_R.data_ptr(),
        position_R.data_ptr(),
        number_of(kernels),
    )
    return None


def _attend(
    keys: Tensor,
    values: Tensor | None,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    q_RAC: Tensor,
    slot_R: Tensor,
    position_R: Tensor,
    scale: float,
    phase: Phase,
    window: int,
    sinks_A: Tensor | None,
    value_dim: int,
    kernels: InstructionSet,
) -> Tensor:
    module, parts = native(), (keys, values, key_scales, value_scales)
    if module is None:
        cache, seen = _whole(*parts, value_dim), window or None
        return cached_attention_naive(q_RAC, cache, slot_R, position_R, scale, seen, sinks_A)
    rows, heads, _ = q_RAC.shape
    _check_rows(q_RAC, (len(slot_R), heads, keys.shape[3]), slot_R, position_R)
    assert heads % keys.shape[1] == 0, "each key serves as many heads"
    # These names keep the tensors alive until the call returns; an address alone does not.
    q_RAC, slot_R, position_R = (
        q_RAC.float().contiguous(),
        slot_R.contiguous(),
        position_R.contiguous(),
    )
    sinks_A = None if sinks_A is None else sinks_A.float().contiguous()
    assert sinks_A is None or sinks_A.shape == (heads,), "one sink for each head"
    out_RAV = torch.empty(rows, heads, value_dim)
    module.attend(
        native_cache(module, parts, value_dim),
        q_RAC.data_ptr(),
        rows,
        heads,
        slot_R.data_ptr(),
        position_R.data_ptr(),
        scale,
        window,
        _address(sinks_A),
        PHASES[phase],
        number_of(kernels),
        out_RAV.data_ptr(),
    )
    return out_RAV


def _append_by_torch(
    keys: Tensor,
    values: Tensor | None,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    k_RGC: Tensor,
    v_RGV: Tensor | None,
    slot_R: Tensor,
    position_R: Tensor,
    kernels: InstructionSet,  # noqa: ARG001
) -> None:
    value_dim = keys.shape[3] if values is None else values.shape[3]
    cache = _whole(keys, values, key_scales, value_scales, value_dim)
    append_naive(cache, k_RGC, v_RGV, slot_R, position_R)


def _attend_by_torch(
    keys: Tensor,
    values: Tensor | None,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    q_RAC: Tensor,
    slot_R: Tensor,
    position_R: Tensor,
    scale: float,
    phase: Phase,  # noqa: ARG001
    window: int,
    sinks_A: Tensor | None,
    value_dim: int,
    kernels: InstructionSet,  # noqa: ARG001
) -> Tensor:
    cache, seen = _whole(keys, values, key_scales, value_scales, value_dim), window or None
    return cached_attention_torch(q_RAC, cache, slot_R, position_R, scale, seen, sinks_A)


def _check_rows(
    x_RHC: Tensor, shape: tuple[int, int, int], slot_R: Tensor, position_R: Tensor
) -> None:
    assert x_RHC.shape == shape, f"rows of {tuple(x_RHC.shape)}, not {shape}"
    assert slot_R.dtype == position_R.dtype == torch.int64, "slots and positions are int64"
    assert slot_R.shape == position_R.shape == shape[:1], "one slot and position a row"


def _fake_append(*_: object) -> None:
    """The op returns nothing."""


def _fake_attend(_keys: Tensor, *rest: Any) -> Tensor:
    # The indices follow the op's schema below, without `keys`.
    q_RAC, value_dim = rest[3], rest[10]
    return q_RAC.new_empty(*q_RAC.shape[:2], value_dim, dtype=torch.float32)


LIBRARY.define(
    "append_to_cache(Tensor(a!) keys, Tensor(b!)? values, Tensor(c!)? key_scales, "
    "Tensor(d!)? value_scales, Tensor k, Tensor? v, Tensor slot, Tensor position, str kernels)"
    " -> ()"
)
LIBRARY.define(
    "cached_attention(Tensor keys, Tensor? values, Tensor? key_scales, Tensor? value_scales, "
    "Tensor q, Tensor slot, Tensor position, float scale, str phase, int window, Tensor? sinks, "
    "int value_dim, str kernels) -> Tensor"
)
LIBRARY.impl("append_to_cache", _append, "CPU")
LIBRARY.impl("cached_attention", _attend, "CPU")
LIBRARY.impl("append_to_cache", _append_by_torch, "CUDA")
LIBRARY.impl("cached_attention", _attend_by_torch, "CUDA")
register_fake("mixtura::append_to_cache", _fake_append, lib=LIBRARY)
register_fake("mixtura::cached_attention", _fake_attend, lib=LIBRARY)
