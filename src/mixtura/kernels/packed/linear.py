"""y = x W^T + b for packed weights W: the naive twin, and the op that computes from tiles.

T rows, N output channels, K inputs, G = K/32 groups of a channel. S spans of a row: a span is 32 or
128 consecutive inputs that share a scale of activations. C inputs of a span.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from mixtura.kernels.native import (
    LIBRARY,
    InstructionSet,
    check_offered,
    instruction_sets,
    native,
    number_of,
    warn_once_if_missing,
)
from mixtura.kernels.packed.groups import GROUP, Bits, Groups, dequantise
from mixtura.kernels.packed.tiles import tiled_bytes, untile
from mixtura.kernels.phase import PHASES, Phase

Arithmetic = Literal["int8x32", "int8x128", "bf16", "fp32"]
"""how activations and weights are multiplied

`int8x32` and `int8x128` round activations to int8, with a scale for each span of 32 or 128 inputs.
`bf16` and `fp32` convert activations and weights to that dtype. In both int8 kinds, an activation x
for 8-bit weights is the sum of two int8 terms: x rounded, and the remaining difference rounded."""

_SPANS: dict[Arithmetic, int] = {"int8x32": 32, "int8x128": 128}
# The number of int8 terms of an activation. With 8-bit weights and one term, rounding the
# activations would cause most of the error.
_TERMS: dict[Bits, int] = {4: 1, 8: 2}
_DTYPES: dict[Arithmetic, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def arithmetic_of(phase: Phase, kernels: InstructionSet = "auto") -> Arithmetic:
    """The arithmetic in which the kernels of one instruction set compute in this phase.

    `auto` is the fastest set of this machine. Without compiled kernels PyTorch computes, in `fp32`.
    """
    if native() is None:
        return "fp32"
    if phase != "prefill":
        return "int8x32"
    fastest = instruction_sets()[-1:] if kernels == "auto" else (kernels,)
    return "bf16" if "amx" in fastest else "int8x128"


def quantise_rows(x_TK: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """(q_TK int8, scale_TS fp32): the scale of a span is its largest absolute value divided by 127.

    If a span contains NaN or inf, the scale is not finite and q is 0, so that every product with
    the span is NaN.
    """
    x_TSC = F.pad(x_TK.float(), (0, -x_TK.shape[1] % span)).unflatten(1, (-1, span))
    largest_TS = x_TSC.abs().amax(-1)
    # The dividend is a tensor: torch computes a Python float divided by a tensor as the float times
    # the reciprocal, which rounds twice.
    inverse_TS = torch.where(largest_TS > 0, torch.tensor(127.0) / largest_TS, 0)
    q_TSC = (x_TSC * inverse_TS[..., None]).round()
    q_TSC = torch.where(inverse_TS[..., None] > 0, q_TSC, 0).to(torch.int8)
    return q_TSC.flatten(1)[:, : x_TK.shape[1]], largest_TS / 127


def packed_linear_naive(
    x_TK: Tensor, groups: Groups, arithmetic: Arithmetic, bias_N: Tensor | None = None
) -> Tensor:
    """x W^T + b, (T, N) in fp32, with sums in the order that the arithmetic defines.

    Int8 arithmetic sums integers within a group. The sums of groups are then added in fp32: group
    by group within a span, span by span, and term by term.
    """
    if dtype := _DTYPES.get(arithmetic):
        y_TN = x_TK.to(dtype).float() @ dequantise(groups).to(dtype).float().T
        return y_TN if bias_N is None else y_TN + bias_N
    y_TN = x_TK.new_zeros(len(x_TK), groups.shape[0], dtype=torch.float32)
    span, left_TK = _SPANS[arithmetic], x_TK.float()
    for _ in range(_TERMS[groups.bits]):
        q_TK, scale_TS = quantise_rows(left_TK, span)
        y_TN += _product_of_term(q_TK, scale_TS, groups, span)
        left_TK = left_TK - q_TK * scale_TS.repeat_interleave(span, 1)[:, : x_TK.shape[1]]
    return y_TN if bias_N is None else y_TN + bias_N


def _product_of_term(q_TK: Tensor, scale_TS: Tensor, groups: Groups, span: int) -> Tensor:
    y_TN = scale_TS.new_zeros(len(q_TK), groups.shape[0])
    for start in range(0, q_TK.shape[1], span):
        part_TN = torch.zeros_like(y_TN)
        for first in range(start, min(start + span, q_TK.shape[1]), GROUP):
            group = slice(first, first + GROUP)
            dot_TN = q_TK[:, group].float() @ groups.q_NK[:, group].float().T
            part_TN += dot_TN * groups.scale_NG[:, first // GROUP].float()
        y_TN += part_TN * scale_TS[:, start // span, None]
    return y_TN


def packed_linear(
    x_TK: Tensor,
    tiles: Tensor,
    n: int,
    bits: Bits,
    phase: Phase,
    bias_N: Tensor | None = None,
    kernels: InstructionSet = "auto",
) -> Tensor:
    """x W^T + b, (T, N) in fp32, for fp32 or bf16 rows; `tiles` is W as returned by `tile`.

    A row's result depends only on the row and the phase. Without compiled kernels PyTorch
    multiplies with the unpacked weights. Raises ConfigError for an instruction set in `kernels`
    that this machine does not offer.
    """
    return torch.ops.mixtura.packed_linear(x_TK, tiles, n, bits, phase, bias_N, kernels)


def _packed_linear(
    x_TK: Tensor,
    tiles: Tensor,
    n: int,
    bits: Bits,
    phase: Phase,
    bias_N: Tensor | None,
    kernels: InstructionSet,
) -> Tensor:
    (rows, inputs), module = x_TK.shape, native()
    if tiles.dtype != torch.uint8 or tiles.numel() < tiled_bytes(n, inputs, bits):
        raise ValueError(
            f"tiles must be uint8 and hold {tiled_bytes(n, inputs, bits)} bytes for {n} channels "
            f"of {inputs} inputs, not {tiles.dtype} and {tiles.numel()}"
        )
    x_TK = x_TK.float().contiguous()
    bias_N = None if bias_N is None else bias_N.float().contiguous()
    if module is None:
        check_offered(kernels)
        warn_once_if_missing()
        return packed_linear_naive(x_TK, untile(tiles, n, inputs, bits), "fp32", bias_N)
    tiles = tiles.contiguous()
    y_TN = torch.empty(rows, n)
    module.linear(
        x_TK.data_ptr(),
        rows,
        tiles.data_ptr(),
        n,
        inputs,
        bits,
        0 if bias_N is None else bias_N.data_ptr(),
        PHASES[phase],
        number_of(kernels),
        y_TN.data_ptr(),
    )
    return y_TN


def _fake(
    x_TK: Tensor,
    tiles: Tensor,  # noqa: ARG001
    n: int,
    bits: int,  # noqa: ARG001
    phase: str,  # noqa: ARG001
    bias_N: Tensor | None,  # noqa: ARG001
    kernels: str,  # noqa: ARG001
) -> Tensor:
    return x_TK.new_empty(x_TK.shape[0], n, dtype=torch.float32)


LIBRARY.define(
    "packed_linear(Tensor x, Tensor tiles, int n, int bits, str phase, Tensor? bias, str kernels)"
    " -> Tensor"
)
LIBRARY.impl("packed_linear", _packed_linear, "CPU")
register_fake("mixtura::packed_linear", _fake, lib=LIBRARY)
