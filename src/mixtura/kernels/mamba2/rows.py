"""The mixer's rows of any mix of sequences as an op: by the compiled kernels, or by its slow twin.

Each sequence's rows are read one after another, so a row's result and the state after it depend,
bit for bit, on that row and the state before it alone.

R rows, Q sequences in a step, H heads, P channels of a head, X = HP, N state dims, C channels of
the convolution, J = X + C numbers of a projected row, T taps, W = T - 1 tokens before, S slots.
"""

import torch
from torch import Tensor
from torch.library import register_fake

from mixtura.kernels.gated_delta import Spans
from mixtura.kernels.mamba2.naive import MambaWeights, mamba_mixer_naive
from mixtura.kernels.native import LIBRARY, InstructionSet, native, number_of


def mamba_mixer_rows(
    projected_RJ: Tensor,
    step_RH: Tensor,
    weights: MambaWeights,
    tail_SWC: Tensor,
    state_SHNP: Tensor,
    spans: Spans,
    kernels: InstructionSet = "auto",
) -> Tensor:
    """out_RX in fp32, or in the states' dtype if it is wider; the states in all slots move on.

    As `mamba_mixer_naive` for each sequence; 0 for a row that no sequence has. Raises IndexError
    for a slot or a row that does not exist, and ConfigError for missing `kernels`.
    """
    *tensors, epsilon, least_step, most_step, groups = weights
    return torch.ops.mixtura.mamba_mixer_rows(
        *(projected_RJ, step_RH, tensors, [epsilon, least_step, most_step], groups),
        *(tail_SWC, state_SHNP, *spans, kernels),
    )


def mamba_mixer_rows_torch(
    projected_RJ: Tensor,
    step_RH: Tensor,
    weights: MambaWeights,
    tail_SWC: Tensor,
    state_SHNP: Tensor,
    spans: Spans,
) -> Tensor:
    """As `mamba_mixer_rows`, row by row."""
    dtype = state_SHNP.dtype
    out_RX = torch.zeros(len(projected_RJ), weights.inner, dtype=dtype, device=projected_RJ.device)
    begin = 0
    for slot, end in zip(spans.slot_Q.tolist(), spans.end_Q.tolist(), strict=True):
        tail_WC, state_HNP = tail_SWC[slot].clone(), state_SHNP[slot].clone()
        for row in spans.row_R[begin:end].tolist():
            # torch's vector loop and its remainder differ in the last bit: one row at a time.
            one = slice(row, row + 1)
            rows = (projected_RJ[one].to(dtype), step_RH[one].to(dtype))
            out_1X, tail_WC, state_HNP = mamba_mixer_naive(*rows, weights, tail_WC, state_HNP)
            out_RX[one] = out_1X
        tail_SWC[slot], state_SHNP[slot] = tail_WC, state_HNP
        begin = end
    return out_RX


def _by_kernels(
    projected_RJ: Tensor,
    step_RH: Tensor,
    tensors: list[Tensor],
    numbers: list[float],
    groups: int,
    tail_SWC: Tensor,
    state_SHNP: Tensor,
    slot_Q: Tensor,
    end_Q: Tensor,
    row_R: Tensor,
    kernels: InstructionSet,
) -> Tensor:
    weights, spans = _weights(tensors, numbers, groups), Spans(slot_Q, end_Q, row_R)
    module = native()
    if module is None or state_SHNP.dtype != torch.float32:
        return mamba_mixer_rows_torch(projected_RJ, step_RH, weights, tail_SWC, state_SHNP, spans)
    _check(projected_RJ, step_RH, weights, tail_SWC, state_SHNP)
    # Kept until the call returns: an address does not keep its tensor alive.
    projected_RJ, step_RH, *tensors = (
        one.float().contiguous() for one in (projected_RJ, step_RH, *tensors)
    )
    places = [one.contiguous() for one in spans]
    # A row that is no token has no sequence.
    out_RX = torch.zeros(len(projected_RJ), weights.inner)
    heads, taps = len(weights.rate_H), len(weights.conv_TC)
    module.mamba_mixer(
        projected_RJ.data_ptr(),
        step_RH.data_ptr(),
        [one.data_ptr() for one in tensors],
        [tail_SWC.data_ptr(), state_SHNP.data_ptr()],
        [one.data_ptr() for one in places],
        [len(projected_RJ), len(tail_SWC), len(slot_Q)],
        [heads, weights.head_dim, weights.state_dim, groups, taps],
        numbers,
        number_of(kernels),
        out_RX.data_ptr(),
    )
    return out_RX


def _by_torch(
    projected_RJ: Tensor,
    step_RH: Tensor,
    tensors: list[Tensor],
    numbers: list[float],
    groups: int,
    tail_SWC: Tensor,
    state_SHNP: Tensor,
    slot_Q: Tensor,
    end_Q: Tensor,
    row_R: Tensor,
    kernels: InstructionSet,  # noqa: ARG001
) -> Tensor:
    weights, spans = _weights(tensors, numbers, groups), Spans(slot_Q, end_Q, row_R)
    return mamba_mixer_rows_torch(projected_RJ, step_RH, weights, tail_SWC, state_SHNP, spans)


def _weights(tensors: list[Tensor], numbers: list[float], groups: int) -> MambaWeights:
    conv_TC, conv_bias_C, rate_H, step_bias_H, skip_H, norm_X = tensors
    of_heads, (epsilon, least_step, most_step) = (rate_H, step_bias_H, skip_H), numbers
    return MambaWeights(
        conv_TC, conv_bias_C, *of_heads, norm_X, epsilon, least_step, most_step, groups
    )


def _check(
    projected_RJ: Tensor,
    step_RH: Tensor,
    weights: MambaWeights,
    tail_SWC: Tensor,
    state_SHNP: Tensor,
) -> None:
    rows, heads, slots = len(projected_RJ), len(weights.rate_H), len(tail_SWC)
    inner, channels = weights.inner, weights.channels
    assert heads % weights.groups == 0, "each group serves as many heads"
    assert inner == heads * weights.head_dim, "each head has as many channels"
    assert channels == inner + 2 * weights.groups * weights.state_dim, "inputs, b and c"
    assert projected_RJ.shape == (rows, inner + channels), "gate, inputs, b and c"
    assert weights.conv_bias_C.shape == (channels,), "one a channel"
    for one in (step_RH[0], weights.step_bias_H, weights.skip_H) if rows else ():
        assert one.shape == (heads,), "one a head"
    assert tail_SWC.shape == (slots, len(weights.conv_TC) - 1, channels), "inputs before"
    matrices = (slots, heads, weights.state_dim, weights.head_dim)
    assert state_SHNP.shape == matrices, "a matrix a head"
    for state in (tail_SWC, state_SHNP):
        assert state.dtype == torch.float32, "the kernels keep states in fp32"
        assert state.is_contiguous(), "the kernels read no strides"


def _fake(projected_RJ: Tensor, *rest: Tensor) -> Tensor:
    # The places in the schema below.
    tensors, state_SHNP = rest[1], rest[5]
    return projected_RJ.new_empty(len(projected_RJ), len(tensors[-1]), dtype=state_SHNP.dtype)


LIBRARY.define(
    "mamba_mixer_rows(Tensor projected, Tensor step, Tensor[] weights, float[] numbers, "
    "int groups, Tensor(a!) tail, Tensor(b!) state, Tensor slot, Tensor end, Tensor row, "
    "str kernels) -> Tensor"
)
LIBRARY.impl("mamba_mixer_rows", _by_kernels, "CPU")
LIBRARY.impl("mamba_mixer_rows", _by_torch, "CUDA")
register_fake("mixtura::mamba_mixer_rows", _fake, lib=LIBRARY)
