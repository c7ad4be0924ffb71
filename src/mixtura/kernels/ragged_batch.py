"""One call for products of many short segments of different lengths, each with its own weights.

MKL's `gemm_batch`, which torch's builds for x86 carry and do not offer: every segment is computed
by one thread, where `grouped_mm` and a loop share each small product among all threads.

N rows in E segments, I inputs, O outputs; fp32 or float64, on a CPU.
"""

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mixtura.kernels.torch_functions import torch_function

_FUNCTIONS = {torch.float32: "SGEMM_BATCH", torch.float64: "DGEMM_BATCH"}
# Fortran takes the address of each.
_ARGUMENTS = (ctypes.c_void_p,) * 15


def _gemm_batch(dtype: torch.dtype) -> Callable[..., None] | None:
    """Fortran's function, with 32-bit integers; None where this torch has none."""
    return torch_function(_FUNCTIONS[dtype], _ARGUMENTS)


def ragged_takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch has a batched product for such rows."""
    return device.type == "cpu" and dtype in _FUNCTIONS and _gemm_batch(dtype) is not None


def ragged_rows(rows_NI: Tensor, weight_EIO: Tensor, count_E: list[int]) -> Tensor:
    """(N, O): each segment's rows times its weights; rows past the last segment give 0."""
    num_experts, inputs, outputs = weight_EIO.shape
    rows_NI = rows_NI.contiguous()
    out_NO = rows_NI.new_empty(len(rows_NI), outputs)
    start_E, computed = _starts(count_E)
    # Fortran sees every matrix transposed, so it is asked for out^T = weight^T rows^T.
    stored_as_EIO = weight_EIO.is_contiguous()
    weight = weight_EIO if stored_as_EIO else weight_EIO.mT.contiguous().mT
    _multiply(
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
    """(E, O, I): the sum of outer products of each segment's rows."""
    left_NO, right_NI = left_NO.contiguous(), right_NI.contiguous()
    outputs, inputs = left_NO.shape[1], right_NI.shape[1]
    out_EOI = left_NO.new_empty(len(count_E), outputs, inputs)
    start_E, _ = _starts(count_E)
    _multiply(
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


def _multiply(
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
    """out = left right for each segment, column-major; the caller keeps the tensors alive."""
    function = _gemm_batch(dtype)
    assert function is not None, "ask `ragged_takes` first"
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
        # That many groups, of one product each.
        np.array([segments], np.int32),
        np.ones(segments, np.int32),
    ]
    function(*[argument.ctypes.data for argument in arguments])
