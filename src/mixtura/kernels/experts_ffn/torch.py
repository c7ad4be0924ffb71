"""The FFNs of all experts in PyTorch, with gradients and four kinds of matrix products.

N rows, of which the first R are sorted by expert and the others have no expert. A segment is the
rows of one expert. D width, E experts, F expert width, H rows of w_in: 2F if the activation is
gated (F rows of W_gate, then F rows of W_up), else F. I inputs and O outputs of a product, C rows
of each expert in a batched product. Biases are given for both products of an FFN, or for neither.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mixtura.kernels.activation import activate, activate_backward
from mixtura.kernels.experts_ffn.mkl import ragged_rows, ragged_weights
from mixtura.kernels.experts_ffn.naive import Biases
from mixtura.shapes import Activation

Products = Literal["grouped", "loop", "batched", "ragged"]
"""`grouped` is one grouped_mm for all experts; `loop` is a matmul per expert; `batched` is one
batched matmul if all segments have equal length, else a matmul per expert; `ragged` is MKL's
batched product of segments of any lengths"""


def experts_ffn(
    x_ND: Tensor,
    count_E: Tensor,
    w_in_EHD: Tensor,
    w_out_EDF: Tensor,
    activation: Activation,
    products: Products,
    biases: Biases | None = None,
) -> Tensor:
    """y_ND: the result of `experts_ffn_naive`, by the given kind of products.

    Of the intermediate tensors only h, the input of the activation, is kept for the backward pass.
    """
    return _ExpertsFFN.apply(
        x_ND, count_E, w_in_EHD, w_out_EDF, activation, products, *(biases or (None, None))
    )


class _ExpertsFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_ND: Tensor,
        count_E: Tensor,
        w_in_EHD: Tensor,
        w_out_EDF: Tensor,
        activation: Activation,
        products: Products,
        b_in_EH: Tensor | None,
        b_out_ED: Tensor | None,
    ) -> Tensor:
        multiply = SegmentProducts(products, count_E, x_ND)
        h_NH = multiply.rows(x_ND, w_in_EHD.mT)
        expert_R = None
        if b_in_EH is not None:
            expert_R = _expert_of_rows(count_E)
            _add_bias(h_NH, b_in_EH, expert_R)
        y_ND = multiply.rows(activate(h_NH, activation), w_out_EDF.mT)
        if b_out_ED is not None and expert_R is not None:
            _add_bias(y_ND, b_out_ED, expert_R)
        # Only the gradient of w_in needs x, so x is not kept if w_in is frozen.
        kept_ND = x_ND if ctx.needs_input_grad[2] else None  # pyright: ignore[reportAttributeAccessIssue]
        ctx.save_for_backward(kept_ND, h_NH, w_in_EHD, w_out_EDF, expert_R)  # pyright: ignore[reportArgumentType]
        ctx.multiply, ctx.activation = multiply, activation  # pyright: ignore[reportAttributeAccessIssue]
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_ND: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_ND, h_NH, w_in_EHD, w_out_EDF, expert_R = ctx.saved_tensors
        multiply: SegmentProducts = ctx.multiply
        # The gradient of a sum is an expanded tensor, whose strides the products do not support.
        grad_y_ND = grad_y_ND.contiguous()
        grad_a_NF = multiply.rows(grad_y_ND, w_out_EDF)
        a_NF, grad_h_NH = activate_backward(h_NH, grad_a_NF, ctx.activation)
        needs_x, _, needs_w_in, needs_w_out, _, _, needs_b_in, needs_b_out = ctx.needs_input_grad
        grad_w_out_EDF = multiply.weights(grad_y_ND, a_NF) if needs_w_out else None
        grad_w_in_EHD = multiply.weights(grad_h_NH, x_ND) if needs_w_in else None
        grad_x_ND = multiply.rows(grad_h_NH, w_in_EHD) if needs_x else None
        num_experts = len(w_in_EHD)
        grad_b_in_EH = _sum_of_rows(grad_h_NH, expert_R, num_experts) if needs_b_in else None
        grad_b_out_ED = _sum_of_rows(grad_y_ND, expert_R, num_experts) if needs_b_out else None
        grads = (grad_x_ND, None, grad_w_in_EHD, grad_w_out_EDF, None, None)
        return *grads, grad_b_in_EH, grad_b_out_ED


def _expert_of_rows(count_E: Tensor) -> Tensor:
    """expert_R: the expert of each of the R sorted rows; waits for the device."""
    return torch.repeat_interleave(torch.arange(len(count_E), device=count_E.device), count_E)


def _add_bias(rows_NO: Tensor, bias_EO: Tensor, expert_R: Tensor) -> None:
    rows_NO[: len(expert_R)] += bias_EO[expert_R]


def _sum_of_rows(grad_NO: Tensor, expert_R: Tensor, num_experts: int) -> Tensor:
    sum_EO = grad_NO.new_zeros(num_experts, grad_NO.shape[1])
    return sum_EO.index_add_(0, expert_R, grad_NO[: len(expert_R)])


class SegmentProducts:
    """Matrix products of each expert's rows with the expert's weights.

    Forward and backward pass use the same kind of products.
    """

    def __init__(self, products: Products, count_E: Tensor, x_ND: Tensor) -> None:
        self.rows: Callable[[Tensor, Tensor], Tensor]
        """multiplies (N, I) rows by (E, I, O) weights to (N, O); rows without an expert give 0"""
        self.weights: Callable[[Tensor, Tensor], Tensor]
        """sums the outer products of each expert's (N, O) and (N, I) rows to (E, O, I)"""
        if products == "grouped":
            self._ends_E = count_E.cumsum(0).to(torch.int32)
            self._num_rows = x_ND.shape[0]
            self.rows, self.weights = self._grouped_rows, self._grouped_weights
            return
        self._counts: list[int] = count_E.tolist()
        if products == "ragged":
            self.rows = partial(ragged_rows, count_E=self._counts)
            self.weights = partial(ragged_weights, count_E=self._counts)
        elif products == "batched" and len(set(self._counts)) == 1 and self._counts[0] > 0:
            self.rows, self.weights = self._batched_rows, self._batched_weights
        else:
            self.rows, self.weights = self._loop_rows, self._loop_weights

    def _batched_rows(self, rows_NI: Tensor, weight_EIO: Tensor) -> Tensor:
        num_experts, _, width = weight_EIO.shape
        computed = num_experts * self._counts[0]
        out_NO = rows_NI.new_empty(rows_NI.shape[0], width)
        batch_ECI = rows_NI[:computed].view(num_experts, self._counts[0], -1)
        torch.bmm(batch_ECI, weight_EIO, out=out_NO[:computed].view(num_experts, -1, width))
        out_NO[computed:] = 0
        return out_NO

    def _batched_weights(self, left_NO: Tensor, right_NI: Tensor) -> Tensor:
        num_experts, count = len(self._counts), self._counts[0]
        left_ECO = left_NO[: num_experts * count].view(num_experts, count, -1)
        right_ECI = right_NI[: num_experts * count].view(num_experts, count, -1)
        return torch.bmm(left_ECO.mT, right_ECI)

    def _loop_rows(self, rows_NI: Tensor, weight_EIO: Tensor) -> Tensor:
        out_NO = rows_NI.new_empty(rows_NI.shape[0], weight_EIO.shape[2])
        start = 0
        for expert, count in enumerate(self._counts):
            end = start + count
            if count:
                torch.mm(rows_NI[start:end], weight_EIO[expert], out=out_NO[start:end])
            start = end
        out_NO[start:] = 0
        return out_NO

    def _loop_weights(self, left_NO: Tensor, right_NI: Tensor) -> Tensor:
        shape = (len(self._counts), left_NO.shape[1], right_NI.shape[1])
        out_EOI = left_NO.new_empty(shape)
        start = 0
        for expert, count in enumerate(self._counts):
            end = start + count
            # For an expert without rows mm writes 0, which is the correct sum.
            torch.mm(left_NO[start:end].T, right_NI[start:end], out=out_EOI[expert])
            start = end
        return out_EOI

    def _grouped_rows(self, rows_NI: Tensor, weight_EIO: Tensor) -> Tensor:
        return self._clear_rest(F.grouped_mm(rows_NI, weight_EIO, offs=self._ends_E))

    def _clear_rest(self, out_NO: Tensor) -> Tensor:
        """Set the rows after the last segment to 0; grouped_mm leaves them uninitialised."""
        if out_NO.device.type == "cpu":
            out_NO[int(self._ends_E[-1]) :] = 0
            return out_NO
        # A mask is used, because reading the end of the last segment would wait for the device.
        row_N = torch.arange(self._num_rows, device=out_NO.device)
        return out_NO.masked_fill_((row_N >= self._ends_E[-1])[:, None], 0)

    def _grouped_weights(self, left_NO: Tensor, right_NI: Tensor) -> Tensor:
        return F.grouped_mm(left_NO.T, right_NI, offs=self._ends_E)


def grouped_mm_takes(dtype: torch.dtype, *widths: int) -> bool:
    """Whether torch's grouped_mm supports this dtype and rows of these widths.

    A row must be a multiple of 16 bytes long.
    """
    return dtype in (torch.float32, torch.bfloat16, torch.float16) and all(
        width * dtype.itemsize % 16 == 0 for width in widths
    )
