"""Gated DeltaNet (arXiv 2412.06464), as Qwen3-Next has it.

B sequences, S new tokens, D width, H value heads, K key dim, V value dim, X = HV, C channels of the
convolution, T taps, W = T - 1 tokens before; of rows, R of them.
"""

import torch
from torch import Tensor, nn

from mixtura.kernels.gated_delta import (
    DeltaWeights,
    Spans,
    delta_mixer_rows,
    gated_delta_chunks,
    gated_norm,
    parts_of,
)
from mixtura.kernels.row_linear import row_linear
from mixtura.models.norms import RMSNorm
from mixtura.models.recurrence import Recurrence, States
from mixtura.models.short_conv import CausalConv
from mixtura.shapes import GatedDeltaShape


class GatedDelta(Recurrence):
    """out(norm(delta rule(silu(conv(queries, keys, values)))) silu(gate)).

    With states the tokens are read one after another, so a sequence's results do not depend on how
    it is split; without, in chunks (`gated_delta_chunks`).
    """

    def __init__(self, width: int, shape: GatedDeltaShape) -> None:
        super().__init__()
        self.shape = shape
        self.projection = nn.Linear(width, shape.channels + shape.values, bias=False)
        # Beta and step of each value head. Plain in a packed model: their errors add up in a state.
        self.gates = nn.Linear(width, 2 * shape.value_heads, bias=False)
        self.conv = CausalConv(shape.channels, shape.kernel, bias=False)
        self.rate_log = nn.Parameter(torch.empty(shape.value_heads))
        self.step_bias = nn.Parameter(torch.ones(shape.value_heads))
        self.norm = RMSNorm(shape.value_dim, shape.norm_epsilon)
        self.out = nn.Linear(shape.values, width, bias=False)
        for linear in (self.projection, self.gates, self.out):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        # As transformers' Qwen3-Next: from heads that keep a text to heads that forget it at once.
        with torch.no_grad():
            self.rate_log.copy_(torch.empty_like(self.rate_log).uniform_(0.01, 16).log_())

    def forward(self, x_BSD: Tensor, valid_BS: Tensor | None, states: States | None) -> Tensor:
        projected_BSP, gates_BSG = self.projection(x_BSD), self.gates(x_BSD)
        if states is None:
            mixed_BSX = self._mix_chunks(projected_BSP, gates_BSG, valid_BS)
            return self.out(mixed_BSX.to(projected_BSP.dtype))
        batch, length, _ = x_BSD.shape
        tail_SWC, state_SHKV = states
        mixed_RX = delta_mixer_rows(
            projected_BSP.detach().flatten(0, 1),
            gates_BSG.detach().flatten(0, 1),
            self.weights(),
            tail_SWC,
            state_SHKV,
            Spans.of_batch(batch, length, valid_BS),
        )
        return self.out(mixed_RX.view(batch, length, -1).to(projected_BSP.dtype))

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor]:
        """What `delta_mixer_rows` reads of rows, each row's bits its own within `rows_alone`."""
        return self.projection(x_RD), row_linear(x_RD, self.gates.weight)

    def weights(self) -> DeltaWeights:
        """Between the projections; in fp32 or wider, without gradients."""
        with torch.no_grad():
            return self._weights()

    def _weights(self) -> DeltaWeights:
        """In fp32 or wider."""
        dtype = torch.promote_types(self.rate_log.dtype, torch.float32)
        return DeltaWeights(
            self.conv.weight.to(dtype).T.contiguous(),
            self.rate_log.to(dtype).exp(),
            self.step_bias.to(dtype),
            self.norm.weight.to(dtype),
            self.shape.norm_epsilon,
            self.shape.key_heads,
            self.shape.key_dim,
        )

    def _mix_chunks(
        self, projected_BSP: Tensor, gates_BSG: Tensor, valid_BS: Tensor | None
    ) -> Tensor:
        """out_BSX of whole sequences, in fp32 or wider."""
        shape, weights = self.shape, self._weights()
        input_BSC, gate_BSX = projected_BSP.split([shape.channels, shape.values], -1)
        mixed_BSC, _ = self.conv(input_BSC, valid_BS, None)
        with torch.autocast(projected_BSP.device.type, enabled=False):
            parts = parts_of(mixed_BSC, gates_BSG, weights)
            decay_log_BSH, beta_BSH = parts.decay_log_SH, parts.beta_SH
            if valid_BS is not None:
                decay_log_BSH, beta_BSH = (
                    one * valid_BS[..., None] for one in (decay_log_BSH, beta_BSH)
                )
            read = (parts.q_SHK, parts.k_SHK, parts.v_SHV, decay_log_BSH, beta_BSH)
            out_BSHV = gated_delta_chunks(*read)
            gate_BSHV = gate_BSX.unflatten(-1, out_BSHV.shape[2:])
            return gated_norm(out_BSHV, gate_BSHV, weights)
