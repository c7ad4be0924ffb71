"""The experts' matrix products as custom operators of torch, which `torch.compile` does not trace.

T tokens, D width, K experts per token, E experts, N = T*K rows sorted by expert, I inputs and
O outputs of a product, F expert width, H = 2F. The rows of one expert are a segment.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from mixtura.kernels import permute
from mixtura.kernels.activation import activate
from mixtura.kernels.experts_ffn import SegmentProducts, bf16_rows, bf16_takes, one_token_swiglu
from mixtura.moe.backends import unpadded_products


def _multiply(rows_N: Tensor, count_E: Tensor, *widths: int) -> SegmentProducts:
    return SegmentProducts(unpadded_products(rows_N.dtype, rows_N.device, *widths), count_E, rows_N)


@custom_op("mixtura::segment_rows", mutates_args=())
def segment_rows(
    rows_NI: Tensor, weight: Tensor, count_E: Tensor, transposed: bool, inference: bool
) -> Tensor:
    """Return (N, O): each segment's rows times its expert's weights; 0 after the last segment.

    Weights are stored as (E, O, I), or as (E, I, O) if `transposed`. With `inference`, products
    that have no backward pass may be used.
    """
    weight_EIO = weight if transposed else weight.mT
    with torch.autocast(rows_NI.device.type, enabled=False):
        if inference and bf16_takes(weight.dtype, weight.device):
            return bf16_rows(rows_NI, weight_EIO, count_E.tolist())
        multiply = _multiply(rows_NI, count_E, *weight.shape[1:])
        return multiply.rows(rows_NI.contiguous(), weight_EIO)


@segment_rows.register_fake
def _(rows_NI: Tensor, weight: Tensor, _count_E: Tensor, transposed: bool, *_: object) -> Tensor:
    return rows_NI.new_empty(rows_NI.shape[0], weight.shape[2 if transposed else 1])


@custom_op("mixtura::segment_outer", mutates_args=())
def segment_outer(left_NO: Tensor, right_NI: Tensor, count_E: Tensor) -> Tensor:
    """Return (E, O, I): for each segment, the sum of its rows' outer products, left times right."""
    with torch.autocast(left_NO.device.type, enabled=False):
        multiply = _multiply(left_NO, count_E, left_NO.shape[1], right_NI.shape[1])
        return multiply.weights(left_NO.contiguous(), right_NI.contiguous())


@segment_outer.register_fake
def _(left_NO: Tensor, right_NI: Tensor, count_E: Tensor) -> Tensor:
    return left_NO.new_empty(count_E.shape[0], left_NO.shape[1], right_NI.shape[1])


def _save_inputs(ctx, inputs, output: Tensor) -> None:  # noqa: ARG001
    rows_NI, weight, count_E, transposed, inference = inputs
    assert not inference, "products for inference have no backward"
    needs_rows, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        rows_NI if needs_weight else None, weight if needs_rows else None, count_E
    )
    ctx.transposed = transposed


def _backward(ctx, grad_NO: Tensor):
    rows_NI, weight, count_E = ctx.saved_tensors
    grad_NI = grad_weight = None
    if weight is not None:
        grad_NI = segment_rows(grad_NO, weight, count_E, not ctx.transposed, False)
    if rows_NI is not None:
        pair = (rows_NI, grad_NO) if ctx.transposed else (grad_NO, rows_NI)
        grad_weight = segment_outer(*pair, count_E)
    return grad_NI, grad_weight, None, None, None


segment_rows.register_autograd(_backward, setup_context=_save_inputs)


def swiglu_tokens(
    x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, w_in_EHD: Tensor, w_out_EDF: Tensor
) -> Tensor:
    """Return y_TD, each token's weighted sum of SwiGLU experts' outputs; has no backward pass."""
    if len(x_TD) == 1 and bf16_takes(w_in_EHD.dtype, x_TD.device):
        chosen, weights = expert_TK[0].tolist(), weight_TK[0].tolist()
        return one_token_swiglu(x_TD[0], chosen, weights, w_in_EHD, w_out_EDF)[None]
    order = order_tokens(expert_TK, len(w_in_EHD))
    rows_ND = permute.permute(x_TD, order)
    h_NH = segment_rows(rows_ND, w_in_EHD, order.segment_E, False, True)
    y_ND = segment_rows(activate(h_NH, "swiglu"), w_out_EDF, order.segment_E, False, True)
    return permute.combine(y_ND, weight_TK.flatten(), order)


swiglu_tokens_operator = custom_op("mixtura::swiglu_tokens", swiglu_tokens, mutates_args=())


@swiglu_tokens_operator.register_fake
def _(x_TD: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x_TD)


def order_tokens(
    expert_TK: Tensor, num_experts: int, padding: permute.Padding = permute.COMPACT
) -> permute.Order:
    """The order that sorts rows by expert; before sorting, token t has the K rows from t*K on."""
    tokens, top_k = expert_TK.shape
    token_T = torch.arange(tokens, device=expert_TK.device)
    return permute.order_by_expert(
        expert_TK.flatten(), token_T.repeat_interleave(top_k), num_experts, top_k, padding
    )
