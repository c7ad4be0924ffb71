"""The op that computes the weighted sum of a layer's routed experts from packed weights.

T tokens, N routed rows, n rows of one expert, D width, E experts, F expert width, H rows of w_in in
the order of its tiles (gate and up interleaved if gated), S bytes of an expert.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import register_fake

from mixtura.kernels.activation import activate
from mixtura.kernels.native import (
    LIBRARY,
    InstructionSet,
    check_offered,
    native,
    number_of,
    warn_once_if_missing,
)
from mixtura.kernels.packed.groups import Bits
from mixtura.kernels.packed.linear import Arithmetic, packed_linear_naive
from mixtura.kernels.packed.tiles import (
    ExpertGroups,
    deinterleave_gate_up,
    expert_bytes,
    interleave_gate_up,
    rows_in,
    untile_expert,
)
from mixtura.kernels.phase import PHASES, Phase
from mixtura.shapes import Activation
from mixtura.shapes.activations import OWN, is_gated

# The index of an activation in this tuple is its number in native/packed/kernels.h.
ACTIVATIONS: tuple[Activation, ...] = (
    "swiglu",
    "swiglu_clamped",
    "geglu",
    "geglu_tanh",
    "gelu",
    "relu",
)
assert set(ACTIVATIONS) == set(OWN), "each of our own has a number"


class PackedBiases(NamedTuple):
    """The experts' biases in fp32, made by `biases_in_tiles`; `in_EH` is in the order of tiles."""

    in_EH: Tensor
    out_ED: Tensor


class RoutedRows(NamedTuple):
    """The rows of a routing: the token, the computing expert and the combine weight of each row.

    The expert is num_experts if no expert computes the row.
    """

    token_N: Tensor
    expert_N: Tensor
    weight_N: Tensor


def biases_in_tiles(in_EH: Tensor, out_ED: Tensor, expert_width: int, gated: bool) -> PackedBiases:
    """The biases of w_in and w_out, converted for the kernels.

    If `gated`, the argument `in_EH` has the order [gate; up], as the rows of w_in have before
    tiling.
    """
    tiled_EH = in_EH.new_zeros(len(in_EH), rows_in(expert_width, gated), dtype=torch.float32)
    for expert, own_H in enumerate(in_EH.float()):
        tiled_H = interleave_gate_up(own_H[:, None])[:, 0] if gated else own_H
        tiled_EH[expert, : len(tiled_H)] = tiled_H
    return PackedBiases(tiled_EH, out_ED.float().contiguous())


def packed_experts_naive(
    x_TD: Tensor,
    rows: RoutedRows,
    experts: Iterable[tuple[int, ExpertGroups]],
    activation: Activation,
    arithmetic: Arithmetic,
    biases: PackedBiases | None = None,
) -> Tensor:
    """(T, D) in fp32: the sum of weight * expert(x) over each token's rows, expert by expert.

    It is the naive twin of `packed_experts`.
    """
    y_TD = torch.zeros(x_TD.shape, dtype=torch.float32)
    gated = is_gated(activation)
    for expert, groups in experts:
        of_expert = (rows.expert_N == expert).nonzero().squeeze(1)
        token_n, width = rows.token_N[of_expert], groups.w_out.shape[1]
        h_nH = packed_linear_naive(x_TD[token_n], groups.w_in, arithmetic)
        if biases is not None:
            in_H = biases.in_EH[expert][:, None]
            hidden = groups.w_in.shape[0]
            own_H1 = deinterleave_gate_up(in_H, hidden // 2) if gated else in_H[:hidden]
            h_nH = h_nH + own_H1[:, 0]
        a_nF = activate(h_nH, activation)
        a_nF = torch.nn.functional.pad(a_nF, (0, width - a_nF.shape[1]))
        out_nD = packed_linear_naive(a_nF, groups.w_out, arithmetic)
        if biases is not None:
            out_nD = out_nD + biases.out_ED[expert]
        y_TD.index_add_(0, token_n, out_nD * rows.weight_N[of_expert].float()[:, None])
    return y_TD


def packed_experts(
    x_TD: Tensor,
    rows: RoutedRows,
    tiles_ES: Tensor,
    expert_width: int,
    bits: Bits,
    activation: Activation,
    phase: Phase,
    biases: PackedBiases | None = None,
    kernels: InstructionSet = "auto",
) -> Tensor:
    """(T, D) in fp32: each token's weighted sum of expert outputs; tokens are fp32 or bf16.

    Each row of `tiles_ES` has the bytes of one expert, which `tile_expert` returns. A token's
    result depends only on the token, its rows and the phase.
    """
    in_EH, out_ED = biases or (None, None)
    return torch.ops.mixtura.packed_experts(
        x_TD, *rows, tiles_ES, expert_width, bits, activation, phase, in_EH, out_ED, kernels
    )


def _packed_experts(
    x_TD: Tensor,
    token_N: Tensor,
    expert_N: Tensor,
    weight_N: Tensor,
    tiles_ES: Tensor,
    expert_width: int,
    bits: Bits,
    activation: Activation,
    phase: Phase,
    in_EH: Tensor | None,
    out_ED: Tensor | None,
    kernels: InstructionSet,
) -> Tensor:
    (tokens, width), module = x_TD.shape, native()
    biases = None if in_EH is None or out_ED is None else PackedBiases(in_EH, out_ED)
    rows = RoutedRows(
        token_N.to(torch.int64).contiguous(),
        expert_N.to(torch.int64).contiguous(),
        weight_N.float().contiguous(),
    )
    _check(x_TD, rows, tiles_ES, expert_width, bits, activation)
    x_TD = x_TD.float().contiguous()
    if biases is not None:
        biases = PackedBiases(*(bias.float().contiguous() for bias in biases))
    if module is None or activation not in ACTIVATIONS:
        if module is None:
            check_offered(kernels)
            warn_once_if_missing()
        gated = is_gated(activation)
        experts = (
            (expert, untile_expert(tiles_ES[expert], width, expert_width, bits, gated))
            for expert in rows.expert_N.unique().tolist()
            if expert < len(tiles_ES)
        )
        return packed_experts_naive(x_TD, rows, experts, activation, "fp32", biases)
    y_TD = torch.empty(tokens, width)
    module.experts(
        x_TD.data_ptr(),
        tokens,
        rows.token_N.data_ptr(),
        rows.expert_N.data_ptr(),
        rows.weight_N.data_ptr(),
        len(rows.token_N),
        tiles_ES.data_ptr(),
        tiles_ES.stride(0),
        len(tiles_ES),
        width,
        expert_width,
        bits,
        ACTIVATIONS.index(activation),
        0 if biases is None else biases.in_EH.data_ptr(),
        0 if biases is None else biases.out_ED.data_ptr(),
        PHASES[phase],
        number_of(kernels),
        y_TD.data_ptr(),
    )
    return y_TD


def _check(
    x_TD: Tensor,
    rows: RoutedRows,
    tiles_ES: Tensor,
    expert_width: int,
    bits: Bits,
    activation: Activation,
) -> None:
    """Raises ValueError for arguments with which the kernels would read outside of a tensor.

    The kernels read from addresses and check no bounds.
    """
    tokens, width = x_TD.shape
    needed = expert_bytes(width, expert_width, bits, is_gated(activation))
    if tiles_ES.dtype != torch.uint8 or tiles_ES.shape[1] < needed or tiles_ES.stride(1) != 1:
        raise ValueError(
            f"tiles must be uint8 rows of {needed} bytes, one an expert, not {tiles_ES.dtype} of "
            f"shape {tuple(tiles_ES.shape)}"
        )
    lengths = {len(part) for part in rows}
    if len(lengths) != 1:
        raise ValueError(f"token, expert and weight are of lengths {sorted(lengths)}, not of one")
    if rows.token_N.numel():
        least, most = torch.stack([rows.token_N, rows.expert_N]).aminmax(dim=1)
        if int(least.min()) < 0 or int(most[0]) >= tokens:
            raise ValueError(
                f"tokens must lie in 0..{tokens - 1} and experts be 0 or more, not in "
                f"{int(least[0])}..{int(most[0])} and from {int(least[1])} on"
            )


def _fake(
    x_TD: Tensor,
    token_N: Tensor,  # noqa: ARG001
    expert_N: Tensor,  # noqa: ARG001
    weight_N: Tensor,  # noqa: ARG001
    tiles_ES: Tensor,  # noqa: ARG001
    expert_width: int,  # noqa: ARG001
    bits: int,  # noqa: ARG001
    activation: str,  # noqa: ARG001
    phase: str,  # noqa: ARG001
    in_EH: Tensor | None,  # noqa: ARG001
    out_ED: Tensor | None,  # noqa: ARG001
    kernels: str,  # noqa: ARG001
) -> Tensor:
    return x_TD.new_empty(x_TD.shape, dtype=torch.float32)


LIBRARY.define(
    "packed_experts(Tensor x, Tensor token, Tensor expert, Tensor weight, Tensor tiles, "
    "int expert_width, int bits, str activation, str phase, Tensor? bias_in, Tensor? bias_out, "
    "str kernels) -> Tensor"
)
LIBRARY.impl("packed_experts", _packed_experts, "CPU")
register_fake("mixtura::packed_experts", _fake, lib=LIBRARY)
