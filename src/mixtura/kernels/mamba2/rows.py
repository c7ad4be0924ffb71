"""The mixer's rows of any mix of sequences.

Each sequence's rows are read one after another, so a row's result and the state after it depend,
bit for bit, on that row and the state before it alone.

R rows, H heads, P channels of a head, X = HP, N state dims, C channels of the convolution,
J = X + C numbers of a projected row, T taps, W = T - 1 tokens before, S slots.
"""

import torch
from torch import Tensor

from mixtura.kernels.gated_delta import Spans
from mixtura.kernels.mamba2.naive import MambaWeights, mamba_mixer_naive


def mamba_mixer_rows(
    projected_RJ: Tensor,
    step_RH: Tensor,
    weights: MambaWeights,
    tail_SWC: Tensor,
    state_SHNP: Tensor,
    spans: Spans,
) -> Tensor:
    """out_RX in fp32, or in the states' dtype if it is wider; the states in all slots move on.

    As `mamba_mixer_naive` for each sequence; 0 for a row that no sequence has.
    """
    return mamba_mixer_rows_torch(projected_RJ, step_RH, weights, tail_SWC, state_SHNP, spans)


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
