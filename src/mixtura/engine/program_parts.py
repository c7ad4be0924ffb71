"""A decoder's weights and norms as the compiled module takes them: by the addresses of tensors."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.kernels.packed.experts import ACTIVATIONS
from mixtura.models.norms import UnitOffsetRMSNorm
from mixtura.packed import PackedEmbedding, PackedExperts, PackedLinear


class Parts:
    """Parts of a decoder as arguments of the compiled module, which takes tensors by address.

    `held` keeps these tensors in memory.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.held: list[Tensor] = []
        self.experts_of: dict[int, Tensor] = {}

    def at(self, tensor: Tensor | None) -> int:
        """The address of a tensor; 0 for None."""
        if tensor is None:
            return 0
        tensor = tensor.detach().contiguous()
        self.held.append(tensor)
        return tensor.data_ptr()

    def floats(self, tensor: Tensor | None) -> int:
        """The address of the tensor in fp32; 0 for None."""
        return self.at(None if tensor is None else tensor.detach().float())

    def norm(self, norm: nn.Module) -> Any:
        match norm:
            case UnitOffsetRMSNorm():
                return self.module.Norm(1, self.floats(1 + norm.weight.float()), 0, norm.epsilon)
            case nn.RMSNorm():
                assert norm.eps is not None, "ours have one"
                return self.module.Norm(1, self.floats(norm.weight), 0, norm.eps)
            case nn.LayerNorm():
                bias = self.floats(norm.bias)
                return self.module.Norm(2, self.floats(norm.weight), bias, norm.eps)
            case _:
                return self.module.Norm(0, 0, 0, 0.0)

    def linear(self, linear: nn.Module) -> Any:
        assert isinstance(linear, PackedLinear), "why_not has looked"
        shape = (linear.out_features, linear.in_features, linear.bits)
        return self.module.Linear(self.at(linear.tiles), *shape, self.floats(linear.bias))

    def embedding(self, table: nn.Module | None) -> Any:
        assert isinstance(table, PackedEmbedding), "why_not has looked"
        return self.module.Linear(self.at(table.tiles), table.rows, table.width, table.bits, 0)

    def experts(self, experts: nn.Module, layer: int | None = None) -> Any:
        """`layer` is given for routed experts, whose table enters `experts_of`."""
        assert isinstance(experts, PackedExperts), "why_not has looked"
        tiles_ES = experts.tiles
        # `at` is not used here: it could copy these bytes, which are mapped from a file and may
        # exceed the memory.
        assert tiles_ES.stride(1) == 1, "an expert's bytes stand in a row"
        table_E = tiles_ES.data_ptr() + tiles_ES.stride(0) * torch.arange(len(tiles_ES))
        self.held += [tiles_ES, table_E]
        if layer is not None:
            self.experts_of[layer] = table_E
        return self.module.Experts(
            table_E.data_ptr(),
            len(tiles_ES),
            experts.width,
            experts.expert_width,
            experts.bits,
            ACTIVATIONS.index(experts.activation),
            self.floats(experts.bias_in),
            self.floats(experts.bias_out),
        )
