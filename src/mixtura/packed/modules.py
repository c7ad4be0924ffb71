"""Modules that compute from packed weights; each replaces a module of torch or Mixtura.

T tokens, N outputs, K inputs, D width, E experts, S bytes of one expert.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.kernels.experts_ffn import Biases
from mixtura.kernels.packed.experts import PackedBiases, RoutedRows, biases_in_tiles, packed_experts
from mixtura.kernels.packed.groups import GROUP, Bits, dequantise
from mixtura.kernels.packed.linear import packed_linear
from mixtura.kernels.packed.tiles import untile, untile_expert, untile_rows
from mixtura.kernels.phase import current_phase
from mixtura.moe.routing import Routing
from mixtura.shapes import Activation
from mixtura.shapes.activations import is_gated


class PackedModule(nn.Module):
    """The base of packed modules, whose weights are integers and cannot be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Raises ConfigError if `mode` is True."""
        if mode:
            raise ConfigError(
                "a packed model cannot be trained; train the model that it was packed from, and "
                "pack that again"
            )
        return super().train(mode)


class PackedLinear(PackedModule):
    """x W^T + b in fp32.

    If the number of inputs is not a multiple of 32, the packed W has padding, and x is padded too.
    """

    tiles: Tensor
    bias: Tensor | None

    def __init__(
        self, tiles: Tensor, out_features: int, in_features: int, bits: Bits, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits: Bits = bits
        self.register_buffer("tiles", tiles)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)"""
        x_TK = F.pad(x.reshape(-1, self.in_features), (0, -self.in_features % GROUP))
        y_TN = packed_linear(
            x_TK, self.tiles, self.out_features, self.bits, current_phase(), self.bias
        )
        return y_TN.view(*x.shape[:-1], self.out_features)

    def dequantised(self) -> Tensor:
        """weight_NK in fp32, without padding."""
        padded = self.in_features + -self.in_features % GROUP
        weight_NK = dequantise(untile(self.tiles, self.out_features, padded, self.bits))
        return weight_NK[:, : self.in_features]


class PackedEmbedding(PackedModule):
    """An embedding table [N, K]; a row is unpacked when it is looked up."""

    tiles: Tensor

    def __init__(self, tiles: Tensor, rows: int, width: int, bits: Bits) -> None:
        super().__init__()
        self.rows, self.width = rows, width
        self.bits: Bits = bits
        self.register_buffer("tiles", tiles)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., K). Raises IndexError for an id outside the table."""
        id_T = ids.reshape(-1)
        if len(id_T) and not 0 <= int(id_T.min()) <= int(id_T.max()) < self.rows:
            raise IndexError(f"ids must lie in 0..{self.rows - 1}")
        groups = untile_rows(self.tiles, id_T, self.rows, self.width, self.bits)
        return dequantise(groups).view(*ids.shape, self.width)


class ExpertWeights(NamedTuple):
    """Dequantised weights in the layout of `Experts`: w_in (E, rows, D), w_out (E, D, F)."""

    w_in: Tensor
    w_out: Tensor


class PackedExperts(PackedModule):
    """The experts of one layer, with packed weights; an implementation of `RoutedExperts`."""

    tiles: Tensor
    bias_in: Tensor | None
    bias_out: Tensor | None

    def __init__(
        self,
        tiles_ES: Tensor,
        width: int,
        expert_width: int,
        bits: Bits,
        activation: Activation,
        biases: Biases | None = None,
    ) -> None:
        super().__init__()
        self.width, self.expert_width = width, expert_width
        self.bits: Bits = bits
        self.activation: Activation = activation
        self.register_buffer("tiles", tiles_ES)
        tiled = None if biases is None else biases_in_tiles(*biases, expert_width, self.gated)
        self.register_buffer("bias_in", None if tiled is None else tiled.in_EH)
        self.register_buffer("bias_out", None if tiled is None else tiled.out_ED)

    @property
    def gated(self) -> bool:
        return is_gated(self.activation)

    @property
    def biases(self) -> PackedBiases | None:
        """The experts' biases, in the order of the tiles; None if there are no biases."""
        if self.bias_in is None or self.bias_out is None:
            return None
        return PackedBiases(self.bias_in, self.bias_out)

    def routed(self, x_TD: Tensor, rows: RoutedRows) -> Tensor:
        """out_TD in fp32: each token's weighted sum of expert outputs."""
        return packed_experts(
            x_TD,
            rows,
            self.tiles,
            self.expert_width,
            self.bits,
            self.activation,
            current_phase(),
            self.biases,
        )

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """out_TD in fp32.

        The rows of all waves are computed at once, which does not change their sum.
        """
        return self.routed(x_TD, RoutedRows(routing.token_N, routing.expert_N, routing.weight_N))

    def dequantised(self) -> ExpertWeights:
        """The weights of all experts in fp32, without padding."""
        each = [
            untile_expert(tiles_S, self.width, self.expert_width, self.bits, self.gated)
            for tiles_S in self.tiles
        ]
        return ExpertWeights(
            torch.stack([dequantise(groups.w_in) for groups in each]),
            torch.stack([dequantise(groups.w_out)[:, : self.expert_width] for groups in each]),
        )


class PackedFFN(PackedExperts):
    """A dense FFN, stored as a single expert that computes every token."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(..., D) -> (..., D)"""
        x_TD = x.reshape(-1, self.width)
        tokens = len(x_TD)
        first_T = torch.zeros(tokens, dtype=torch.int64)
        rows = RoutedRows(torch.arange(tokens), first_T, torch.ones(tokens))
        return self.routed(x_TD, rows).view(x.shape)
