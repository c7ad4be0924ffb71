"""Matrix products of MKL for rows sorted by expert.

torch's builds for x86 contain MKL, but have no Python API for these products. `ragged_rows` and
`ragged_weights` multiply all experts' rows in one call, in fp32 or float64. In this call one thread
multiplies the rows of one expert, whereas `grouped_mm` and a loop over experts divide each small
product among all threads. `bf16_rows` and `one_token_swiglu` multiply few bf16 rows and have no
backward pass. Their products of one row read weights at about the speed of memory. Unlike oneDNN,
MKL builds no kernel for each new number of rows.

N rows in E segments, one for each expert, I inputs, O outputs, K experts of one token, D width, F
expert width, H = 2F (gate, then up).
"""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.native import torch_function

_BATCHES = {torch.float32: "SGEMM_BATCH", torch.float64: "DGEMM_BATCH"}
# A Fortran function takes the address of each argument.
_OF_BATCH = (ctypes.c_void_p,) * 15
_COLUMN_MAJOR, _PLAIN, _TRANSPOSED = 102, 111, 112
_MATRIX = (ctypes.c_void_p, ctypes.c_int)
_SIZES = (ctypes.c_int,) * 6
_OF_BF16 = (*_SIZES, ctypes.c_float, *_MATRIX, *_MATRIX, ctypes.c_float, *_MATRIX)


def _gemm_batch(dtype: torch.dtype) -> Callable[..., None] | None:
    """MKL's batched matrix product, called by Fortran's interface with 32-bit integers.

    It is None if this torch does not have it.
    """
    return torch_function(_BATCHES[dtype], _OF_BATCH)


def ragged_takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `ragged_rows` and `ragged_weights` support rows of this dtype on this device."""
    return device.type == "cpu" and dtype in _BATCHES and _gemm_batch(dtype) is not None


def ragged_rows(rows_NI: Tensor, weight_EIO: Tensor, count_E: list[int]) -> Tensor:
    """(N, O): each segment's rows times its expert's weights; rows after all segments give 0."""
    num_experts, inputs, outputs = weight_EIO.shape
    rows_NI = rows_NI.contiguous()
    out_NO = rows_NI.new_empty(len(rows_NI), outputs)
    start_E, computed = _starts(count_E)
    # Matrices are column-major here, so each tensor is read as its transpose: this computes out^T =
    # weight^T rows^T.
    stored_as_EIO = weight_EIO.is_contiguous()
    weight = weight_EIO if stored_as_EIO else weight_EIO.mT.contiguous().mT
    _multiply_batch(
        rows_NI.dtype,
        transposed=(not stored_as_EIO, False),
        sizes=(outputs, np.asarray(count_E), inputs),
        left=_pointers(weight, np.arange(num_experts) * inputs * outputs),
        left_stride=outputs if stored_as_EIO else inputs,
        right=_pointers(rows_NI, start_E * inputs),
        right_stride=inputs,
        out=_pointers(out_NO, start_E * outputs),
        out_stride=outputs,
    )
    out_NO[computed:] = 0
    return out_NO


def ragged_weights(left_NO: Tensor, right_NI: Tensor, count_E: list[int]) -> Tensor:
    """(E, O, I): the sum of the outer products of each segment's rows."""
    left_NO, right_NI = left_NO.contiguous(), right_NI.contiguous()
    outputs, inputs = left_NO.shape[1], right_NI.shape[1]
    out_EOI = left_NO.new_empty(len(count_E), outputs, inputs)
    start_E, _ = _starts(count_E)
    _multiply_batch(
        left_NO.dtype,
        transposed=(False, True),
        sizes=(inputs, outputs, np.asarray(count_E)),
        left=_pointers(right_NI, start_E * inputs),
        left_stride=inputs,
        right=_pointers(left_NO, start_E * outputs),
        right_stride=outputs,
        out=_pointers(out_EOI, np.arange(len(count_E)) * outputs * inputs),
        out_stride=inputs,
    )
    return out_EOI


def _starts(count_E: list[int]) -> tuple[np.ndarray, int]:
    end_E = np.cumsum(count_E, dtype=np.int64)
    return end_E - count_E, int(end_E[-1]) if len(end_E) else 0


def _pointers(of: Tensor, offset_E: np.ndarray) -> np.ndarray:
    return of.data_ptr() + offset_E.astype(np.int64) * of.element_size()


def _multiply_batch(
    dtype: torch.dtype,
    *,
    transposed: tuple[bool, bool],
    sizes: tuple[int | np.ndarray, int | np.ndarray, int | np.ndarray],
    left: np.ndarray,
    left_stride: int,
    right: np.ndarray,
    right_stride: int,
    out: np.ndarray,
    out_stride: int,
) -> None:
    """Compute out = left right for each segment, with column-major matrices.

    The caller must keep the tensors alive.
    """
    function = _gemm_batch(dtype)
    assert function is not None, "the caller checks `ragged_takes`"
    segments = len(out)
    if segments == 0:
        return
    scalar = np.float32 if dtype == torch.float32 else np.float64

    def integers(value: int | np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(value, segments), dtype=np.int32)

    letters = [np.full(segments, ord("T" if flip else "N"), np.uint8) for flip in transposed]
    arguments = [
        *letters,
        *map(integers, sizes),
        np.ones(segments, scalar),
        left,
        integers(left_stride),
        right,
        integers(right_stride),
        np.zeros(segments, scalar),
        out,
        integers(out_stride),
        # MKL can divide products into groups: here each segment is a group of one product.
        np.array([segments], np.int32),
        np.ones(segments, np.int32),
    ]
    function(*[argument.ctypes.data for argument in arguments])


def _gemm_bf16() -> Callable[..., None] | None:
    """MKL's out = alpha * left right + beta * out, for bf16 matrices and an fp32 `out`.

    It is None if this torch does not have it.
    """
    return torch_function("cblas_gemm_bf16bf16f32", _OF_BF16)


@cache
def _computes_in_bf16() -> bool:
    # On a processor without bf16 instructions MKL first converts every weight to a wider dtype.
    return torch.cpu._is_avx512_bf16_supported() and _gemm_bf16() is not None


def bf16_takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `bf16_rows` supports rows of this dtype on this device.

    This torch must have MKL's bf16 product, and the processor must have bf16 instructions.
    """
    return device.type == "cpu" and dtype == torch.bfloat16 and _computes_in_bf16()


def bf16_rows(rows_NI: Tensor, weight_EIO: Tensor, count_E: list[int]) -> Tensor:
    """(N, O): each segment's rows times its expert's weights; rows after all segments give 0."""
    inputs, outputs = weight_EIO.shape[1:]
    rows_NI = rows_NI.contiguous()
    out_NO = rows_NI.new_empty(len(rows_NI), outputs)
    longest = max(count_E, default=0)
    # fp32 sums of one segment at a time; they stay in the processor's cache until they are rounded.
    sum_nO = torch.empty(longest, outputs, dtype=torch.float32)
    multiply = _Bf16Product(weight_EIO)
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
    """y_D: the sum over k of weight[k] * w_out[e] swiglu(w_in[e] x), with e = expert_K[k].

    The sum is in fp32. A choice k whose expert number is E adds 0.
    """
    num_experts, rows, width = w_in_EHD.shape
    kept = [(e, weight) for e, weight in zip(expert_K, weight_K, strict=True) if e < num_experts]
    x_D = x_D.contiguous()
    h_KH = torch.empty(len(kept), rows, dtype=torch.float32)
    y_D = torch.zeros(width, dtype=torch.float32)
    into, out_of = _Bf16Product(w_in_EHD.mT), _Bf16Product(w_out_EDF.mT)
    for k, (expert, _) in enumerate(kept):
        into(expert, x_D.data_ptr(), 1, h_KH[k].data_ptr(), 1.0, 0.0)
    gate_KF, up_KF = h_KH.chunk(2, 1)
    a_KF = (F.silu(gate_KF) * up_KF).to(torch.bfloat16)
    for k, (expert, weight) in enumerate(kept):
        # beta = 1 adds this expert's output to the sum of the experts before.
        out_of(expert, a_KF[k].data_ptr(), 1, y_D.data_ptr(), weight, 1.0)
    return y_D.to(torch.bfloat16)


class _Bf16Product:
    """A product of bf16 rows with one expert's weights, given by addresses.

    The caller must keep the tensors alive.
    """

    def __init__(self, weight_EIO: Tensor) -> None:
        if weight_EIO.is_contiguous():
            flip = _PLAIN
        else:
            # The weights are stored as (E, O, I), or are copied to this layout.
            weight_EIO, flip = weight_EIO.mT.contiguous().mT, _TRANSPOSED
        function = _gemm_bf16()
        assert function is not None, "the caller checks `bf16_takes`"
        self._function, self._flip, self._weight_EIO = function, flip, weight_EIO
        _, self._inputs, self._outputs = weight_EIO.shape
        self._stride = self._outputs if flip == _PLAIN else self._inputs
        self._address, self._step = weight_EIO.data_ptr(), 2 * self._inputs * self._outputs

    def __call__(
        self, expert: int, rows: int, count: int, out: int, alpha: float, beta: float
    ) -> None:
        # Matrices are column-major here, so each tensor is read as its transpose: this computes
        # out^T = weight^T rows^T.
        self._function(
            _COLUMN_MAJOR, self._flip, _PLAIN, self._outputs, count, self._inputs, alpha,
            self._address + expert * self._step, self._stride, rows, self._inputs,
            beta, out, self._outputs,
        )  # fmt: skip
