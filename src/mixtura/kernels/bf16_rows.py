"""Products of few bf16 rows with each expert's weights, read once and in place; no backward.

MKL's bf16 product, which torch's builds for x86 carry and do not offer: at one row it reads weights
at about the speed of memory, and it makes no kernel anew for a count of rows that it has not met.

N rows in E segments, I inputs, O outputs, K experts of one token, D width, F expert width, H = 2F.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.torch_functions import torch_function

_COLUMN_MAJOR, _PLAIN, _TRANSPOSED = 102, 111, 112
_MATRIX = (ctypes.c_void_p, ctypes.c_int)
_SIZES = (ctypes.c_int,) * 6
_ARGUMENTS = (*_SIZES, ctypes.c_float, *_MATRIX, *_MATRIX, ctypes.c_float, *_MATRIX)


def _gemm() -> Callable[..., None] | None:
    """out (fp32) = alpha * left right + beta * out; None where this torch has no such function."""
    return torch_function("cblas_gemm_bf16bf16f32", _ARGUMENTS)


@cache
def _computes_in_bf16() -> bool:
    # Without the instruction MKL widens every weight first.
    return torch.cpu._is_avx512_bf16_supported() and _gemm() is not None


def bf16_takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch and this processor have the product for such rows."""
    return device.type == "cpu" and dtype == torch.bfloat16 and _computes_in_bf16()


def bf16_rows(rows_NI: Tensor, weight_EIO: Tensor, count_E: list[int]) -> Tensor:
    """(N, O): each segment's rows times its weights; rows past the last segment give 0."""
    inputs, outputs = weight_EIO.shape[1:]
    rows_NI = rows_NI.contiguous()
    out_NO = rows_NI.new_empty(len(rows_NI), outputs)
    longest = max(count_E, default=0)
    # A segment's sums stay in the cache until they are rounded.
    sum_nO = torch.empty(longest, outputs, dtype=torch.float32)
    multiply = _Multiply(weight_EIO)
    start = 0
    for expert, count in enumerate(count_E):
        if count:
            end = start + count
            row = rows_NI.data_ptr() + 2 * inputs * start
            multiply(expert, row, count, sum_nO.data_ptr(), 1.0, 0.0)
            out_NO[start:end].copy_(sum_nO[:count])
            start = end
    out_NO[start:] = 0
    return out_NO


def one_token_swiglu(
    x_D: Tensor, expert_K: list[int], weight_K: list[float], w_in_EHD: Tensor, w_out_EDF: Tensor
) -> Tensor:
    """y_D = sum over k of weight[k] w_out[e] swiglu(w_in[e] x), summed in fp32; `e` = E gives 0."""
    num_experts, rows, width = w_in_EHD.shape
    kept = [(e, weight) for e, weight in zip(expert_K, weight_K, strict=True) if e < num_experts]
    x_D = x_D.contiguous()
    h_KH = torch.empty(len(kept), rows, dtype=torch.float32)
    y_D = torch.zeros(width, dtype=torch.float32)
    into, out_of = _Multiply(w_in_EHD.mT), _Multiply(w_out_EDF.mT)
    for k, (expert, _) in enumerate(kept):
        into(expert, x_D.data_ptr(), 1, h_KH[k].data_ptr(), 1.0, 0.0)
    gate_KF, up_KF = h_KH.chunk(2, 1)
    a_KF = (F.silu(gate_KF) * up_KF).to(torch.bfloat16)
    for k, (expert, weight) in enumerate(kept):
        # beta = 1 adds this expert to those before it.
        out_of(expert, a_KF[k].data_ptr(), 1, y_D.data_ptr(), weight, 1.0)
    return y_D.to(torch.bfloat16)


class _Multiply:
    """One expert's product by addresses; its caller keeps the tensors alive."""

    def __init__(self, weight_EIO: Tensor) -> None:
        if weight_EIO.is_contiguous():
            flip = _PLAIN
        else:
            # Stored as (E, O, I), and made so where it is neither.
            weight_EIO, flip = weight_EIO.mT.contiguous().mT, _TRANSPOSED
        function = _gemm()
        assert function is not None, "ask `bf16_takes` first"
        self._function, self._flip, self._weight_EIO = function, flip, weight_EIO
        _, self._inputs, self._outputs = weight_EIO.shape
        self._stride = self._outputs if flip == _PLAIN else self._inputs
        self._address, self._step = weight_EIO.data_ptr(), 2 * self._inputs * self._outputs

    def __call__(
        self, expert: int, rows: int, count: int, out: int, alpha: float, beta: float
    ) -> None:
        # Fortran sees every matrix transposed, so it is asked for out^T = weight^T rows^T.
        self._function(
            _COLUMN_MAJOR, self._flip, _PLAIN, self._outputs, count, self._inputs, alpha,
            self._address + expert * self._step, self._stride, rows, self._inputs,
            beta, out, self._outputs,
        )  # fmt: skip
