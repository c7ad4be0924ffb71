"""Mamba-2 (arXiv 2405.21060), as Granite 4 and Nemotron have it.

B sequences, S new tokens, D width, H heads, P channels of a head, X = HP, N state dims, C channels
of the convolution, J = X + C numbers of a projected token; of rows, R of them.
"""

import torch
from torch import Tensor, nn

from mixtura.kernels.gated_delta import Spans
from mixtura.kernels.mamba2 import (
    MambaWeights,
    gated_group_norm,
    mamba2_chunks,
    mamba_mixer_rows,
    mamba_parts,
)
from mixtura.kernels.row_linear import row_linear
from mixtura.models.norms import RMSNorm
from mixtura.models.recurrence import Recurrence, States
from mixtura.models.short_conv import CausalConv
from mixtura.shapes import Mamba2Shape


class Mamba2(Recurrence):
    """out(norm(recurrence(silu(conv(inputs, b, c)), steps) silu(gate))).

    With states the tokens are read one after another, so a sequence's results do not depend on how
    it is split; without, in chunks (`mamba2_chunks`).
    """

    def __init__(self, width: int, shape: Mamba2Shape) -> None:
        super().__init__()
        self.shape = shape
        self.projection = nn.Linear(width, shape.inner + shape.channels, bias=shape.bias)
        # Plain in a packed model: errors of the decay add up in a state.
        self.steps = nn.Linear(width, shape.heads, bias=shape.bias)
        self.conv = CausalConv(shape.channels, shape.kernel, shape.conv_bias)
        # As transformers' Granite: the heads' rates are 1, 2, 3, ...
        self.rate_log = nn.Parameter(torch.arange(1, shape.heads + 1).float().log())
        self.step_bias = nn.Parameter(torch.ones(shape.heads))
        self.skip = nn.Parameter(torch.ones(shape.heads))
        self.norm = RMSNorm(shape.inner, shape.norm_epsilon)
        self.out = nn.Linear(shape.inner, width, bias=shape.bias)
        for linear in (self.projection, self.steps, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x_BSD: Tensor, valid_BS: Tensor | None, states: States | None) -> Tensor:
        projected_BSJ, step_BSH = self.projection(x_BSD), self.steps(x_BSD)
        if states is None:
            mixed_BSX = self._mix_chunks(projected_BSJ, step_BSH, valid_BS)
            return self.out(mixed_BSX.to(projected_BSJ.dtype))
        batch, length, _ = x_BSD.shape
        spans, (tail_BWC, state_BHNP) = Spans.of_batch(batch, length, valid_BS), states
        rows = (projected_BSJ.detach().flatten(0, 1), step_BSH.detach().flatten(0, 1))
        mixed_RX = mamba_mixer_rows(*rows, self.weights(), tail_BWC, state_BHNP, spans)
        return self.out(mixed_RX.view(batch, length, -1).to(projected_BSJ.dtype))

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor]:
        """What `mamba_mixer_rows` reads of rows, each row's bits its own within `rows_alone`."""
        return self.projection(x_RD), row_linear(x_RD, self.steps.weight, self.steps.bias)

    def weights(self) -> MambaWeights:
        """Between the projections; in fp32 or wider, without gradients."""
        with torch.no_grad():
            return self._weights()

    def _weights(self) -> MambaWeights:
        """In fp32 or wider."""
        shape, conv_bias_C = self.shape, self.conv.bias
        if conv_bias_C is None:
            conv_bias_C = self.conv.weight.new_zeros(shape.channels)
        return MambaWeights(
            _wide(self.conv.weight).T.contiguous(),
            _wide(conv_bias_C),
            _wide(self.rate_log).exp(),
            _wide(self.step_bias),
            _wide(self.skip),
            _wide(self.norm.weight),
            shape.norm_epsilon,
            shape.least_step,
            float("inf") if shape.most_step is None else shape.most_step,
            shape.groups,
        )

    def _mix_chunks(
        self, projected_BSJ: Tensor, step_BSH: Tensor, valid_BS: Tensor | None
    ) -> Tensor:
        """out_BSX of whole sequences, in fp32 or wider."""
        shape, weights = self.shape, self._weights()
        gate_BSX, input_BSC = projected_BSJ.split([shape.inner, shape.channels], -1)
        mixed_BSC, _ = self.conv(input_BSC, valid_BS, None)
        with torch.autocast(projected_BSJ.device.type, enabled=False):
            parts = mamba_parts(_wide(mixed_BSC), _wide(step_BSH), weights)
            if valid_BS is not None:
                kept_BS1 = valid_BS[..., None]
                steps = (parts.step_SH * kept_BS1, parts.decay_log_SH * kept_BS1)
                parts = parts._replace(step_SH=steps[0], decay_log_SH=steps[1])
            skipped_BSHP = weights.skip_H[:, None] * parts.x_SHP
            out_BSX = (mamba2_chunks(parts) + skipped_BSHP).flatten(2)
            return gated_group_norm(out_BSX, _wide(gate_BSX), weights)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
