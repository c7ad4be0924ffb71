"""Packs the experts of transformers models, for "mixtura-4bit" and "mixtura-8bit".

T tokens, D width, K experts per token, N = T*K rows, E experts, F expert width, H outputs of the
first product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations.moe import _default_apply_gate

from mixtura.errors import ConfigError
from mixtura.hf_models.experts import ExpertsModule
from mixtura.hf_models.one_row_linear import replace_linears
from mixtura.kernels.experts_ffn import Biases
from mixtura.kernels.packed.experts import RoutedRows
from mixtura.kernels.packed.groups import GROUP, Bits, quantise
from mixtura.kernels.packed.tiles import tile_expert
from mixtura.kernels.phase import in_phase
from mixtura.packed.modules import PackedExperts
from mixtura.shapes import Activation

NAMES: dict[str, Bits] = {"mixtura-4bit": 4, "mixtura-8bit": 8}

# A call with fewer tokens runs in the phase `decode`, whose kernels suit few rows per expert.
_PREFILL_FROM = 64
_GATED: list[tuple[str, Activation]] = [
    ("silu", "swiglu"),
    ("gelu", "geglu"),
    ("gelu_pytorch_tanh", "geglu_tanh"),
]
_PLAIN: list[tuple[str, Activation]] = [("gelu", "gelu"), ("relu", "relu")]
_REMEDY = "; choose experts_implementation='mixtura'"


def pack_experts(model: PreTrainedModel, bits: Bits = 8) -> None:
    """Pack every experts module of a model now, and not only at the module's first use.

    Other linear layers keep their weights and become `OneRowLinear`, which is faster for one row of
    bf16. Raises ConfigError for experts that packed kernels cannot compute, before it packs any.
    """
    name = next(name for name, own in NAMES.items() if own == bits)
    found = [module for module in model.modules() if _is_experts_module(module)]
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no experts that transformers' experts interface serves"
        )
    for module in found:
        _activation_of(module)
    for module in found:
        _packed(module, bits)
    replace_linears(model)
    model.set_experts_implementation(name)


def packed_forward(
    bits: Bits,
    self: ExpertsModule,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Return the experts' output (T, D) for hidden states (T, D), ids (T, K) and weights (T, K).

    A row with the id `num_experts` adds nothing, and there is no backward pass. The first call
    packs the module's weights, and replaces them by empty tensors on the meta device.
    """
    if torch.is_grad_enabled() and hidden_states.requires_grad:
        raise ConfigError(f"packed experts have no backward pass{_REMEDY} to train")
    experts = _packed(self, bits)
    tokens, top_k = top_k_index.shape
    token_N = torch.arange(tokens).repeat_interleave(top_k)
    rows = RoutedRows(token_N, top_k_index.flatten(), top_k_weights.flatten())
    with in_phase("prefill" if tokens >= _PREFILL_FROM else "decode"):
        return experts.routed(hidden_states, rows).to(hidden_states.dtype)


def forward_of(bits: Bits) -> Callable[..., Tensor]:
    return partial(packed_forward, bits)


def _is_experts_module(module: nn.Module) -> bool:
    # transformers' experts interface sets these flags on each experts module.
    return {"has_gate", "has_bias", "is_transposed"} <= vars(module).keys()


def _packed(module: Any, bits: Bits) -> PackedExperts:
    held = vars(module).get("_mixtura_packed")
    if isinstance(held, PackedExperts):
        if held.bits != bits:
            raise ConfigError(
                f"{type(module).__name__} is packed in {held.bits} bits, and its weights are gone; "
                f"load the model again to have it in {bits}"
            )
        return held
    packed = _pack(module, bits)
    # nn.Module's __setattr__ would make the packed experts a part of the state dict.
    vars(module)["_mixtura_packed"] = packed
    for name in [name for name, _ in module.named_parameters(recurse=False)]:
        own = getattr(module, name)
        # With a meta tensor, saving the model raises an error. Without any tensor, the saved file
        # would silently lack the weight.
        setattr(module, name, nn.Parameter(own.detach().to("meta"), requires_grad=False))
    return packed


def _pack(module: Any, bits: Bits) -> PackedExperts:
    activation = _activation_of(module)
    gated = module.has_gate
    w_in = module.gate_up_proj if gated else module.up_proj
    w_in, w_out = w_in.detach(), module.down_proj.detach()
    if module.is_transposed:
        w_in, w_out = w_in.mT, w_out.mT
    num_experts, width, expert_width = w_out.shape
    biases = None
    if module.has_bias:
        in_EH = module.gate_up_proj_bias if gated else module.up_proj_bias
        biases = Biases(_gate_first(in_EH.detach(), module), module.down_proj_bias.detach())
    tiles: Tensor | None = None
    for expert in range(num_experts):
        name = f"expert {expert} of {type(module).__name__}"
        in_HD = _gate_first(w_in[expert].T, module).T
        out_DF = nn.functional.pad(w_out[expert].float(), (0, -expert_width % GROUP))
        own = tile_expert(quantise(in_HD, bits, name), quantise(out_DF, bits, name), gated)
        tiles = own.new_empty(num_experts, len(own)) if tiles is None else tiles
        tiles[expert] = own
    assert tiles is not None, "a bank has experts"
    return PackedExperts(tiles, width, expert_width, bits, activation, biases)


def _gate_first(rows: Tensor, module: ExpertsModule) -> Tensor:
    """`rows` in the order [gate; up] along the last dim; some families interleave gate and up."""
    if not module.has_gate or module.is_concatenated:
        return rows
    return rows.unflatten(-1, (-1, 2)).mT.flatten(-2)


def _activation_of(module: Any) -> Activation:
    """The experts' activation. Raises ConfigError if packed kernels cannot compute the experts."""
    name = type(module).__name__
    if getattr(module, "has_post_expert_norm", False):
        raise ConfigError(f"{name} norms what its experts give, and packed ones do not{_REMEDY}")
    if module.has_gate and type(module)._apply_gate is not _default_apply_gate:
        if (getattr(module, "alpha", None), getattr(module, "limit", None)) == (1.702, 7.0):
            return "swiglu_clamped"
        raise ConfigError(f"{name} has a gate of its own, which packed experts lack{_REMEDY}")
    for known, activation in _GATED if module.has_gate else _PLAIN:
        if isinstance(module.act_fn, type(ACT2FN[known])):
            return activation
    raise ConfigError(
        f"{name} has the activation {type(module.act_fn).__name__}, which packed experts lack"
        f"{_REMEDY}"
    )
