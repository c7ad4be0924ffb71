"""The mixer's rows of any mix of sequences as an op: by the compiled kernels, or by the slow twin.

Each sequence's rows are read one after another, so a row's result and the state after it depend,
bit for bit, on that row and the state before it alone.

R rows, Q sequences in a step, H value heads, K key dim, V value dim, X = HV, C channels of the
convolution, P = C + X channels of a projected row, G = 2H gates, T taps, W = T - 1 tokens before.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.library import register_fake

from mixtura.kernels.gated_delta.naive import DeltaWeights, delta_mixer_naive
from mixtura.kernels.native import LIBRARY, InstructionSet, native, number_of


class Spans(NamedTuple):
    """The rows of a step, sequence by sequence; int64, in the CPU's memory."""

    slot_Q: Tensor
    end_Q: Tensor
    """how many rows the sequence and those before it have"""
    row_R: Tensor
    """numbers of rows, each sequence's in the order of its positions; others are no tokens"""

    @classmethod
    def of(cls, rows_of: Mapping[int, Sequence[int]]) -> Self:
        """`rows_of` numbers each slot's rows, in the order of their positions."""
        rows = [row for own in rows_of.values() for row in own]
        every = (list(rows_of), list(accumulate(map(len, rows_of.values()))), rows)
        return cls(*(torch.tensor(one, dtype=torch.int64) for one in every))

    @classmethod
    def of_batch(cls, batch: int, length: int, valid_BS: Tensor | None) -> Self:
        """Of a batch's positions, flattened; sequence b is in slot b, and padding is no row."""
        slot_Q = torch.arange(batch)
        if valid_BS is None:
            return cls(slot_Q, (slot_Q + 1) * length, torch.arange(batch * length))
        valid_BS = valid_BS.cpu()
        return cls(slot_Q, valid_BS.sum(1).cumsum(0), valid_BS.flatten().nonzero().flatten())


def delta_mixer_rows(
    projected_RP: Tensor,
    gates_RG: Tensor,
    weights: DeltaWeights,
    tail_SWC: Tensor,
    state_SHKV: Tensor,
    spans: Spans,
    kernels: InstructionSet = "auto",
) -> Tensor:
    """out_RX in fp32, or in the states' dtype if it is wider; the states in all slots move on.

    As `delta_mixer_naive` for each sequence; 0 for a row that no sequence has. Raises IndexError
    for a slot or a row that does not exist, and ConfigError for missing `kernels`.
    """
    conv_TC, rate_H, step_bias_H, norm_V, epsilon, key_heads, key_dim = weights
    return torch.ops.mixtura.delta_mixer_rows(
        *(projected_RP, gates_RG, conv_TC, rate_H, step_bias_H, norm_V, epsilon),
        *(key_heads, key_dim, tail_SWC, state_SHKV, *spans, kernels),
    )


def delta_mixer_rows_torch(
    projected_RP: Tensor,
    gates_RG: Tensor,
    weights: DeltaWeights,
    tail_SWC: Tensor,
    state_SHKV: Tensor,
    spans: Spans,
) -> Tensor:
    """As `delta_mixer_rows`, row by row."""
    dtype = state_SHKV.dtype
    out_RX = torch.zeros(len(projected_RP), weights.values, dtype=dtype, device=projected_RP.device)
    begin = 0
    for slot, end in zip(spans.slot_Q.tolist(), spans.end_Q.tolist(), strict=True):
        tail_WC, state_HKV = tail_SWC[slot].clone(), state_SHKV[slot].clone()
        for row in spans.row_R[begin:end].tolist():
            # torch's vector loop and its remainder differ in the last bit: one row at a time.
            one = slice(row, row + 1)
            rows = (projected_RP[one].to(dtype), gates_RG[one].to(dtype))
            out_1X, tail_WC, state_HKV = delta_mixer_naive(*rows, weights, tail_WC, state_HKV)
            out_RX[one] = out_1X
        tail_SWC[slot], state_SHKV[slot] = tail_WC, state_HKV
        begin = end
    return out_RX


def _by_kernels(
    projected_RP: Tensor,
    gates_RG: Tensor,
    conv_TC: Tensor,
    rate_H: Tensor,
    step_bias_H: Tensor,
    norm_V: Tensor,
    epsilon: float,
    key_heads: int,
    key_dim: int,
    tail_SWC: Tensor,
    state_SHKV: Tensor,
    slot_Q: Tensor,
    end_Q: Tensor,
    row_R: Tensor,
    kernels: InstructionSet,
) -> Tensor:
    weights = DeltaWeights(conv_TC, rate_H, step_bias_H, norm_V, epsilon, key_heads, key_dim)
    states, spans = (tail_SWC, state_SHKV), Spans(slot_Q, end_Q, row_R)
    module = native()
    if module is None or state_SHKV.dtype != torch.float32:
        return delta_mixer_rows_torch(projected_RP, gates_RG, weights, *states, spans)
    _check(projected_RP, gates_RG, weights, tail_SWC, state_SHKV)
    # Kept until the call returns: an address does not keep its tensor alive.
    projected_RP, gates_RG, *four = (
        one.float().contiguous() for one in (projected_RP, gates_RG, *weights[:4])
    )
    spans = [one.contiguous() for one in spans]
    # A row that is no token has no sequence.
    out_RX = torch.zeros(len(projected_RP), weights.values)
    module.delta_mixer(
        projected_RP.data_ptr(),
        gates_RG.data_ptr(),
        [one.data_ptr() for one in four],
        [one.data_ptr() for one in states],
        [one.data_ptr() for one in spans],
        [len(projected_RP), len(tail_SWC), len(slot_Q)],
        [key_heads, len(rate_H), key_dim, len(norm_V), len(conv_TC)],
        epsilon,
        number_of(kernels),
        out_RX.data_ptr(),
    )
    return out_RX


def _by_torch(
    projected_RP: Tensor,
    gates_RG: Tensor,
    conv_TC: Tensor,
    rate_H: Tensor,
    step_bias_H: Tensor,
    norm_V: Tensor,
    epsilon: float,
    key_heads: int,
    key_dim: int,
    tail_SWC: Tensor,
    state_SHKV: Tensor,
    slot_Q: Tensor,
    end_Q: Tensor,
    row_R: Tensor,
    kernels: InstructionSet,  # noqa: ARG001
) -> Tensor:
    weights = DeltaWeights(conv_TC, rate_H, step_bias_H, norm_V, epsilon, key_heads, key_dim)
    states, spans = (tail_SWC, state_SHKV), Spans(slot_Q, end_Q, row_R)
    return delta_mixer_rows_torch(projected_RP, gates_RG, weights, *states, spans)


def _check(
    projected_RP: Tensor,
    gates_RG: Tensor,
    weights: DeltaWeights,
    tail_SWC: Tensor,
    state_SHKV: Tensor,
) -> None:
    rows, heads, slots = len(projected_RP), len(weights.rate_H), len(tail_SWC)
    channels, values = weights.channels, weights.values
    assert heads % weights.key_heads == 0, "each key head serves as many value heads"
    assert channels == 2 * weights.key_heads * weights.key_dim + values, "queries, keys, values"
    assert projected_RP.shape == (rows, channels + values), "queries, keys, values and gate"
    assert gates_RG.shape == (rows, 2 * heads), "two gates a head"
    assert weights.step_bias_H.shape == (heads,), "one a head"
    assert tail_SWC.shape == (slots, len(weights.conv_TC) - 1, channels), "inputs before"
    value_dim = len(weights.norm_V)
    assert state_SHKV.shape == (slots, heads, weights.key_dim, value_dim), "a matrix a head"
    for state in (tail_SWC, state_SHKV):
        assert state.dtype == torch.float32, "the kernels keep states in fp32"
        assert state.is_contiguous(), "the kernels read no strides"


def _fake(projected_RP: Tensor, *rest: Tensor) -> Tensor:
    # The places in the schema below.
    rate_H, norm_V, state_SHKV = rest[2], rest[4], rest[9]
    return projected_RP.new_empty(
        len(projected_RP), len(rate_H) * len(norm_V), dtype=state_SHKV.dtype
    )


LIBRARY.define(
    "delta_mixer_rows(Tensor projected, Tensor gates, Tensor conv, Tensor rate, Tensor step_bias, "
    "Tensor norm, float epsilon, int key_heads, int key_dim, Tensor(a!) tail, Tensor(b!) state, "
    "Tensor slot, Tensor end, Tensor row, str kernels) -> Tensor"
)
LIBRARY.impl("delta_mixer_rows", _by_kernels, "CPU")
LIBRARY.impl("delta_mixer_rows", _by_torch, "CUDA")
register_fake("mixtura::delta_mixer_rows", _fake, lib=LIBRARY)
