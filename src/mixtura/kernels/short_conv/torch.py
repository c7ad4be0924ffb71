"""The convolution in torch: whole sequences with padding, or rows of any mix of sequences.

Products and sums are separate operations, oldest token first, so a token's result is the same bit
for bit however its sequence is split into parts.

B sequences, S tokens, D channels, K taps, W = K - 1 tokens before, L = W + S; R rows, N rows that
go on, Q sequences in a step.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Convolved(NamedTuple):
    out_BSD: Tensor
    """in the dtype of x"""
    after_BWD: Tensor
    """the last W inputs of each sequence, in fp32 or wider"""


def short_conv(
    x_BSD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    before_BWD: Tensor | None = None,
    valid_BS: Tensor | None = None,
) -> Convolved:
    """See `short_conv_naive`. Padding, False in `valid_BS`, is skipped wherever it stands.

    The result at a padded position has no meaning.
    """
    batch, new, channels = x_BSD.shape
    past = weight_DK.shape[1] - 1
    wide_BSD = _wide(x_BSD)
    if before_BWD is None:
        before_BWD = wide_BSD.new_zeros(batch, past, channels)
    place_BS1 = None
    if valid_BS is not None:
        # Tokens move to the front, in their order, and padding behind them.
        order_BS = (~valid_BS).to(torch.uint8).argsort(dim=1, stable=True)
        place_BS1 = order_BS.argsort(dim=1)[..., None]
        wide_BSD = wide_BSD.take_along_dim(order_BS[..., None], 1)
    all_BLD = torch.cat([before_BWD.to(wide_BSD.dtype), wide_BSD], 1)
    out_BSD = _weighed([all_BLD[:, tap : tap + new] for tap in range(past + 1)], weight_DK, bias_D)
    if valid_BS is None or place_BS1 is None:
        return Convolved(out_BSD.to(x_BSD.dtype), all_BLD[:, new:])
    last_BW = valid_BS.sum(1)[:, None] + torch.arange(past, device=x_BSD.device)
    after_BWD = all_BLD.take_along_dim(last_BW[..., None], 1)
    return Convolved(out_BSD.take_along_dim(place_BS1, 1).to(x_BSD.dtype), after_BWD)


class Taps(NamedTuple):
    """Where the K inputs of each row lie: in the states of the step's sequences, or its rows.

    Numbers below Q * W are the states' inputs, sequence by sequence; row r is Q * W + r.
    """

    slot_Q: Tensor
    """the sequences of the step, each once"""
    source_RK: Tensor
    after_QW: Tensor
    """the last W inputs of each sequence, after the step"""

    @classmethod
    def of(cls, rows_of: Mapping[int, Sequence[int]], past: int, device: torch.device) -> Self:
        """`rows_of` numbers each slot's rows, in the order of their positions."""
        rows = sum(map(len, rows_of.values()))
        source_RK: list[list[int]] = [[]] * rows
        after_QW: list[list[int]] = []
        for number, own in enumerate(rows_of.values()):
            inputs = [*range(number * past, (number + 1) * past)]
            inputs += [len(rows_of) * past + row for row in own]
            for at, row in enumerate(own):
                source_RK[row] = inputs[at : at + past + 1]
            after_QW.append(inputs[len(own) :])
        every = (list(rows_of), source_RK, after_QW)
        return cls(*(torch.tensor(one, device=device) for one in every))


def short_conv_rows(
    x_RD: Tensor,
    held_SWD: Tensor,
    taps: Taps,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    chosen_N: Tensor | None = None,
) -> Tensor:
    """out_ND of the rows numbered `chosen_N`, by default all; the states in `held_SWD` move on."""
    all_LD = torch.cat([held_SWD[taps.slot_Q].flatten(0, 1), _wide(x_RD).to(held_SWD.dtype)])
    held_SWD[taps.slot_Q] = all_LD[taps.after_QW]
    source_NK = taps.source_RK if chosen_N is None else taps.source_RK[chosen_N]
    inputs = [all_LD[source_N] for source_N in source_NK.unbind(1)]
    return _weighed(inputs, weight_DK, bias_D).to(x_RD.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _weighed(inputs: Sequence[Tensor], weight_DK: Tensor, bias_D: Tensor | None) -> Tensor:
    """The sum of the K inputs, each times its tap's weights; the oldest first."""
    wide_DK = weight_DK.to(torch.promote_types(weight_DK.dtype, inputs[0].dtype))
    out = inputs[0] * wide_DK[:, 0]
    for tap, x in enumerate(inputs[1:], 1):
        out = out + x * wide_DK[:, tap]
    return out if bias_D is None else out + bias_D
