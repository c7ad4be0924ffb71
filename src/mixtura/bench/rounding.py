"""Rounds the weights of a plain model: to those of a packed model, or by llama.cpp's rule.

N output channels, K inputs.
"""

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.checkpoints.gguf.rules import llama_cpp_groups
from mixtura.kernels.packed.groups import dequantise
from mixtura.packed import PackedEmbedding, PackedExperts, PackedLinear
from mixtura.packed.packable import plan
from mixtura.shapes.storage.numbers import GROUP, ITEM_BYTES, Bits, group_bytes, up
from mixtura.shapes.storage.packed import Planned


@torch.no_grad()
def unpack_into(plain: nn.Module, packed: nn.Module) -> None:
    """Copy a packed model's dequantised weights into a plain model; other weights are unchanged."""
    for one in _packed_ones(plain):
        held = packed.get_submodule(one.name.removesuffix(".weight"))
        match held:
            case PackedLinear():
                weights = [held.dequantised()]
            case PackedEmbedding():
                weights = [held(torch.arange(held.rows))]
            case PackedExperts():
                weights = list(held.dequantised())
            case _:
                raise AssertionError(f"{one.name} is packed")
        for place, weight in zip(_weights(plain, one), weights, strict=True):
            place.copy_(weight.view(place.shape))


@torch.no_grad()
def round_by_llama_cpp(
    model: nn.Module,
    bits: Bits,
    head_bits: Bits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Apply llama.cpp's rounding (Q4_0 or Q8_0) to the weights that packing would pack, in place.

    `head_bits` are the bits of the head and the embedding. `progress` is called with the number of
    finished tensors and the number of all tensors. Returns the size of the rounded model in
    bytes: its groups with their scales, and 16 bits for each weight that is not rounded.
    """
    weights: list[tuple[Tensor, Bits]] = [
        (weight, one.bits(bits, head_bits or bits))
        for one in _packed_ones(model)
        for weight in _weights(model, one)
    ]
    size = 0
    for done, (weight, own) in enumerate(weights):
        # Only one expert's matrix is copied to fp32 at a time.
        for w_NK in weight.flatten(0, -3) if weight.dim() > 2 else [weight]:
            inputs = w_NK.shape[1]
            padded_NK = F.pad(w_NK.float(), (0, -inputs % GROUP))
            w_NK.copy_(dequantise(llama_cpp_groups(padded_NK, own))[:, :inputs])
        size += prod(weight.shape[:-1]) * up(weight.shape[-1], GROUP) // GROUP * group_bytes(own)
        if progress is not None:
            progress(done + 1, len(weights))
    rounded = sum(weight.numel() for weight, _ in weights)
    left = sum(p.numel() for p in model.parameters()) - rounded
    return size + ITEM_BYTES["float16"] * left


def _packed_ones(model: nn.Module) -> list[Planned]:
    """The tensors that packing would pack."""
    return [one for one in plan(model) if one.kind != "plain"]


def _weights(model: nn.Module, one: Planned) -> list[Tensor]:
    """The parameter of a matrix, or the two parameters of FFNs."""
    if one.kind == "tiles":
        return [model.get_parameter(one.name)]
    return [model.get_parameter(name) for name in one.weights]
