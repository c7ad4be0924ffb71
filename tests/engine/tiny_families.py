"""Tiny decoders of every kind that the engine has to follow, with weights none of which is neutral.

A value of 1 + 0.1 x in each norm, biases of 0.1 x, and so on.
"""

from typing import Any

import torch

from mixtura.models import Decoder, DecoderConfig

HEADS: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 6}
LATENT: dict[str, Any] = {
    "kind": "latent",
    "heads": 3,
    "kv_rank": 8,
    "nope_dim": 6,
    "turning_dim": 4,
    "value_dim": 5,
}
MOE: dict[str, Any] = {"num_experts": 4, "top_k": 2, "expert_width": 8}
BASE: dict[str, Any] = {
    "layers": 2,
    "width": 16,
    "vocabulary": 23,
    "context": 48,
    "attention": HEADS,
    "ffn_width": 24,
}
LONGROPE: dict[str, Any] = {
    "kind": "longrope",
    "short": [1.0, 1.2, 1.5],
    "long": [1.0, 3.0, 6.0],
    "original_context": 16,
    "short_amplitude": 1.1,
    "long_amplitude": 1.4,
}
YARN: dict[str, Any] = {"kind": "yarn", "factor": 4.0, "original_context": 12, "amplitude": 1.2}
LLAMA3: dict[str, Any] = {
    "kind": "llama3",
    "factor": 8.0,
    "low_factor": 1.0,
    "high_factor": 4.0,
    "original_context": 24,
}
LAYER_NORM: dict[str, Any] = {"kind": "layer", "bias": True, "epsilon": 1e-5}
LOCAL: dict[str, Any] = {"window": 5, "layers": [0]}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3_tied": {"attention": {**HEADS, "rope_scaling": LLAMA3}, "tied_head": True},
    "linear_scaling": {"attention": {**HEADS, "rope_scaling": {"kind": "linear", "factor": 3.0}}},
    "qwen2": {"attention": {**HEADS, "input_bias": True}},
    "qwen3_moe": {"attention": {**HEADS, "norm": "head"}, "moe": MOE},
    "olmoe": {"attention": {**HEADS, "norm": "all", "clip": 0.7}, "moe": MOE},
    "mixtral_one_head": {"attention": {**HEADS, "heads": 3, "kv_heads": 1}, "moe": MOE},
    "dbrx": {"attention": {**HEADS, "clip": 0.5}, "norm": {"kind": "layer"}, "moe": MOE},
    "glm4_moe": {
        "attention": {**HEADS, "rotated_dim": 4, "norm": "head", "rope_scaling": YARN},
        "moe": {**MOE, "shared_width": 8, "router": {"kind": "sigmoid_topk", "scale": 1.5}},
    },
    "hunyuan": {
        "attention": {**HEADS, "norm": "head", "norm_after_rotation": True},
        "moe": {**MOE, "shared_width": 8},
        "tied_head": True,
    },
    "exaone_moe": {
        "attention": {**HEADS, "norm": "head", "local": LOCAL, "unrotated": [1]},
        "moe": {**MOE, "router": {"kind": "sigmoid_topk"}},
    },
    "flex_olmo": {
        "attention": {**HEADS, "norm": "all"},
        "pre_norms": False,
        "post_norms": True,
        "moe": {**MOE, "router": {"kind": "softmax_topk", "renormalise": False}},
    },
    "qwen2_moe": {"moe": {**MOE, "shared_width": 8, "shared_gate": True}},
    "half_dense": {"moe": {**MOE, "placement": {"every": 2}, "residual_width": 8}},
    "hash": {"moe": {**MOE, "top_k": 1, "router": {"kind": "hash"}}},
    "gpt_oss": {
        "attention": {
            **HEADS,
            "sinks": True,
            "local": LOCAL,
            "input_bias": True,
            "output_bias": True,
            "rope_scaling": YARN,
        },
        "activation": "swiglu_clamped",
        "moe": {**MOE, "expert_bias": True, "gate_bias": True, "router": {"kind": "topk_softmax"}},
    },
    "gemma3": {
        "attention": {
            **HEADS,
            "norm": "head",
            "scale": 0.3,
            "local": {**LOCAL, "rope_base": 100.0},
            "rope_scaling": {"kind": "linear", "factor": 8.0},
        },
        "norm": {"unit_offset": True},
        "post_norms": True,
        "multipliers": {"embedding": 4.0},
        "activation": "geglu_tanh",
        "tied_head": True,
    },
    "granite": {
        "attention": {**HEADS, "scale": 0.2},
        "multipliers": {"embedding": 3.0, "residual": 0.4, "logits": 0.25},
        "moe": MOE,
    },
    "phimoe": {
        "attention": {**HEADS, "input_bias": True, "output_bias": True, "rope_scaling": LONGROPE},
        "norm": LAYER_NORM,
        "head_bias": True,
        "moe": MOE,
    },
    "deepseek_v2_lite": {"attention": LATENT, "moe": {**MOE, "shared_width": 8}},
    "deepseek_v3": {
        "attention": {**LATENT, "query_rank": 7, "input_bias": True, "rope_scaling": YARN},
        "moe": {**MOE, "router": {"kind": "sigmoid_topk"}, "placement": {"first_dense": 1}},
    },
}
# Of three layers the middle one has attention.
FAMILIES["lfm2"] = {
    "layers": 3,
    "attention": {**HEADS, "norm": "head"},
    "recurrence": {"kind": "short_conv", "kernel": 3, "layers": [0, 2]},
    "tied_head": True,
}
FAMILIES["lfm2_moe"] = {
    **FAMILIES["lfm2"],
    "layers": 4,
    "recurrence": {"kind": "short_conv", "kernel": 4, "bias": True, "layers": [3, 0, 1]},
    "moe": {**MOE, "router": {"kind": "sigmoid_topk"}, "placement": {"first_dense": 1}},
}
FAMILIES["qwen3_next"] = {
    "layers": 4,
    "attention": {**HEADS, "rotated_dim": 4, "norm": "head", "output_gate": True},
    "norm": {"unit_offset": True},
    "recurrence": {
        "kind": "gated_delta",
        "key_heads": 2,
        "value_heads": 4,
        "key_dim": 6,
        "value_dim": 5,
        "kernel": 4,
        "layers": [0, 1, 3],
    },
    "moe": {**MOE, "shared_width": 8, "shared_gate": True},
}
# The last layer attends, and has a gate with a bias; as many heads of keys as of values.
FAMILIES["gated_delta_first"] = {
    "layers": 3,
    "attention": {**HEADS, "output_gate": True, "input_bias": True},
    "recurrence": {
        "kind": "gated_delta",
        "key_heads": 3,
        "value_heads": 3,
        "key_dim": 17,
        "value_dim": 18,
        "kernel": 2,
        "layers": [0, 1],
    },
}
FAMILIES["granitemoehybrid"] = {
    "layers": 4,
    "attention": {**HEADS, "scale": 0.2, "unrotated": [0, 1, 2, 3]},
    "multipliers": {"embedding": 3.0, "residual": 0.4, "logits": 0.25},
    "recurrence": {
        "kind": "mamba2",
        "heads": 4,
        "head_dim": 7,
        "state_dim": 5,
        "groups": 2,
        "kernel": 4,
        "layers": [0, 1, 3],
    },
    "moe": {**MOE, "shared_width": 8, "router": {"kind": "topk_softmax"}},
}
# The last layer attends; all projections have a bias, and steps have bounds.
FAMILIES["mamba2_first"] = {
    "layers": 3,
    "recurrence": {
        "kind": "mamba2",
        "heads": 3,
        "head_dim": 18,
        "state_dim": 17,
        "kernel": 2,
        "bias": True,
        "conv_bias": False,
        "least_step": 0.4,
        "most_step": 1.5,
        "layers": [0, 1],
    },
}


def build(family: str, width: int = 16) -> Decoder:
    """The same weights each time, in eval mode."""
    return built({**BASE, **FAMILIES[family]}, width)


def built(tree: dict[str, Any], width: int) -> Decoder:
    """As `build`, of another config."""
    config = DecoderConfig.parse({**tree, "width": width})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        decoder = Decoder(config).eval()
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return decoder


LEAKY: dict[str, Any] = {"kind": "expert_choice", "accept_leak": True}


def leaky() -> Decoder:
    """One whose tokens take experts from each other."""
    return Decoder(DecoderConfig.parse({**BASE, "moe": {**MOE, "router": LEAKY}}))


def tokens(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(23, (length,), generator=generator).tolist()


def long_context(context: int) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Decoder(DecoderConfig.parse({**BASE, "context": context, "moe": MOE})).eval()
