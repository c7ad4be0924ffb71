"""Computes the experts of a transformers model for `experts_implementation="mixtura"`.

T tokens, D width, K experts per token, E experts, N = T*K rows sorted by expert, M such rows with
padding, F expert width, H outputs of the first product: 2F, or F for experts without a gate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.activations import ACT2FN
from transformers.integrations.moe import _default_apply_gate

from mixtura.errors import ConfigError
from mixtura.hf_models.expert_ops import (
    order_tokens,
    segment_rows,
    swiglu_tokens,
    swiglu_tokens_operator,
)
from mixtura.kernels import permute
from mixtura.kernels.experts_ffn import experts_ffn
from mixtura.moe.backends import best_products, padding_of


class ExpertsModule(Protocol):
    """A module of transformers' experts interface.

    Biases and `post_expert_norm` exist only if their flag is True. A module without a gate has
    `up_proj` in place of `gate_up_proj`.
    """

    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool
    gate_up_proj: Tensor
    gate_up_proj_bias: Tensor
    up_proj: Tensor
    up_proj_bias: Tensor
    down_proj: Tensor
    down_proj_bias: Tensor
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor: ...


_SILU = (nn.SiLU, type(ACT2FN["silu"]))
_REMEDY = "; choose experts_implementation='eager'"


@dataclass(frozen=True, slots=True)
class _Bank:
    """The weights of one layer's experts, in the dtype of their products."""

    w_in: Tensor
    w_out: Tensor
    bias_in_EH: Tensor | None
    bias_out_ED: Tensor | None

    @property
    def num_experts(self) -> int:
        return self.w_in.shape[0]


def experts_forward(
    self: ExpertsModule, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Return the experts' output (T, D) for hidden states (T, D), ids (T, K) and weights (T, K).

    The signature is that of transformers' interface. An id equal to the number of experts marks an
    unused row: it adds nothing to the output, and its weight gets no gradient. Raises
    ConfigError for experts that this function cannot compute.
    """
    x_TD, expert_TK = hidden_states, top_k_index.long()
    weight_TK = top_k_weights.masked_fill(expert_TK >= self.num_experts, 0)
    bank = _bank(self, x_TD)
    x_TD = x_TD.to(bank.w_in.dtype)
    trains = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad
        for tensor in (x_TD, weight_TK, bank.w_in, bank.w_out, bank.bias_in_EH, bank.bias_out_ED)
    )
    if not _is_swiglu(self):
        y_TD = _any_experts(self, x_TD, expert_TK, weight_TK, bank, trains)
    elif not trains and x_TD.device.type == "cpu" and x_TD.dtype == torch.bfloat16:
        # For one token, calling a custom operator takes as long as the products themselves. So the
        # operator is called only in compiled code, where the plain function cannot be traced.
        compute = swiglu_tokens_operator if torch.compiler.is_compiling() else swiglu_tokens
        y_TD = compute(x_TD, expert_TK, weight_TK, bank.w_in, bank.w_out)
    elif torch.compiler.is_compiling():
        y_TD = _any_experts(self, x_TD, expert_TK, weight_TK, bank, trains)
    else:
        y_TD = _swiglu_experts(x_TD, expert_TK, weight_TK, bank)
    return y_TD.to(hidden_states.dtype)


def _bank(module: ExpertsModule, x_TD: Tensor) -> _Bank:
    if x_TD.dim() != 2:
        shape = tuple(x_TD.shape)
        raise ConfigError(f"experts take hidden states of (tokens, width), not {shape}{_REMEDY}")
    w_in = module.gate_up_proj if module.has_gate else module.up_proj
    tensors = [w_in, module.down_proj]
    if module.has_bias:
        tensors.append(module.gate_up_proj_bias if module.has_gate else module.up_proj_bias)
        tensors.append(module.down_proj_bias)
    dtype = _refuse_or_dtype(module, tensors, x_TD)
    w_in, w_out, *biases = (tensor.to(dtype) for tensor in tensors)
    return _Bank(w_in, w_out, *(biases or (None, None)))


def _refuse_or_dtype(module: ExpertsModule, tensors: Sequence[Tensor], x_TD: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's dtype if autocast is on, else that of the weights.

    Raises ConfigError for weights that are not plain floating-point tensors of shape (E, ...).
    """
    name, first = type(module).__name__, tensors[0]
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            kind = type(tensor).__name__
            raise ConfigError(f"{name} keeps its weights as {kind}, not as plain tensors{_REMEDY}")
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise ConfigError(
                f"{name} has quantised weights ({tensor.dtype}), and experts here take floats of "
                f"16 to 64 bits{_REMEDY}"
            )
    if first.dim() != 3 or first.shape[0] != module.num_experts:
        shape = tuple(first.shape)
        raise ConfigError(
            f"{name} has weights of shape {shape} for num_experts={module.num_experts}, and "
            f"experts here take one matrix an expert, stacked{_REMEDY}"
        )
    device = x_TD.device.type
    autocast = torch.is_autocast_enabled(device) and first.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else first.dtype


def _is_swiglu(module: ExpertsModule) -> bool:
    """Whether experts compute only silu(gate) * up, where one product gives [gate; up]."""
    return (
        module.has_gate
        and module.is_concatenated
        and not (module.has_bias or module.is_transposed or _has_norm(module))
        and type(module)._apply_gate is _default_apply_gate
        and isinstance(module.act_fn, _SILU)
    )


def _has_norm(module: ExpertsModule) -> bool:
    # Early versions of the interface lack this flag.
    return getattr(module, "has_post_expert_norm", False)


def _swiglu_experts(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, bank: _Bank) -> Tensor:
    """Compute y_TD by Mixtura's fused experts, which keep one (M, H) tensor for backward."""
    products = best_products(x_TD.dtype, x_TD.device, *bank.w_out.shape[1:])
    order = order_tokens(expert_TK, bank.num_experts, padding_of(products, x_TD.dtype))
    with torch.autocast(x_TD.device.type, enabled=False):
        rows_MD = permute.permute(x_TD, order)
        y_MD = experts_ffn(rows_MD, order.segment_E, bank.w_in, bank.w_out, "swiglu", products)
        return permute.combine(y_MD, weight_TK.flatten(), order)


def _any_experts(
    module: ExpertsModule,
    x_TD: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    bank: _Bank,
    trains: bool,
) -> Tensor:
    """Compute y_TD with Mixtura's products, and with the module's own gate, biases and norm."""
    order = order_tokens(expert_TK, bank.num_experts)
    expert_N = expert_TK.flatten()[order.row_M]
    unused_N = expert_N >= bank.num_experts
    expert_N = expert_N.clamp(max=bank.num_experts - 1)
    rows_ND = _permute(x_TD, order)
    transposed, count_E = module.is_transposed, order.segment_E
    h_NH = segment_rows(rows_ND, bank.w_in, count_E, transposed, not trains)
    if bank.bias_in_EH is not None:
        h_NH = h_NH + bank.bias_in_EH[expert_N]
    a_NF = module._apply_gate(h_NH) if module.has_gate else module.act_fn(h_NH)
    y_ND = segment_rows(a_NF.to(x_TD.dtype), bank.w_out, count_E, transposed, not trains)
    if bank.bias_out_ED is not None:
        y_ND = y_ND + bank.bias_out_ED[expert_N]
    if _has_norm(module):
        y_ND = module.post_expert_norm(y_ND)
    # The products leave zeros in unused rows, but a bias or a norm may have changed them.
    y_ND = y_ND.masked_fill(unused_N[:, None], 0)
    return _combine(y_ND, weight_TK, order)


def _permute(x_TD: Tensor, order: permute.Order) -> Tensor:
    # The compiler fuses plain gathers with the operations around them.
    if torch.compiler.is_compiling():
        return x_TD.index_select(0, order.token_M)
    return permute.permute(x_TD, order)


def _combine(y_ND: Tensor, weight_TK: Tensor, order: permute.Order) -> Tensor:
    if torch.compiler.is_compiling():
        assert order.place_TK is not None
        return (y_ND[order.place_TK] * weight_TK[..., None]).sum(1)
    return permute.combine(y_ND, weight_TK.flatten(), order)
