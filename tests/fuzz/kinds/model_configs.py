"""config.json of every family, beside the weights of the valid one."""

import json
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from tests.checkpoints.quantised.formats import FORMATS
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import Raw, json_text, odd_value, spoilt_bytes, spoilt_tree

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_SPARSE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.5,
}
_DELTA = {
    **_SPARSE,
    "head_dim": 8,
    "shared_expert_intermediate_size": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 3,
}
_SIGMOID = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 8,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1],
    "long_factor": [1.0, 2.5],
    "short_mscale": 1.2,
    "long_mscale": 1.5,
    "original_max_position_embeddings": 64,
}
_GEMMA = {
    "head_dim": 8,
    "sliding_window": 4,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 7,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_local_base_freq": 1e4,
}
_DBRX = {
    "d_model": 16,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 64,
    "vocab_size": 61,
    "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 1e4},
    "ffn_config": {
        "ffn_hidden_size": 8,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_normalize_expert_weights": 1,
        "ffn_act_fn": {"name": "silu"},
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 4, "rope_parameters": _LLAMA3, "attention_bias": True},
    "mistral": {"quantization_config": FORMATS["modelopt nvfp4"].settings, "sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"quantization_config": FORMATS["gptq"].settings, "head_dim": 8},
    "mixtral": {
        "quantization_config": FORMATS["tensors fp8 block"].settings,
        **_SPARSE,
        "sliding_window": None,
    },
    "olmoe": {
        "quantization_config": FORMATS["tensors int4 groups and zeros"].settings,
        **_SPARSE,
        "num_key_value_heads": 4,
        "clip_qkv": 8.0,
    },
    "qwen2_moe": {**_SPARSE, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 2},
    "qwen3_moe": {**_SPARSE, "head_dim": 8, "mlp_only_layers": [0], "norm_topk_prob": True},
    "gpt_oss": {**_SPARSE, "head_dim": 8, "sliding_window": 8, "rope_parameters": _YARN},
    "dbrx": _DBRX,
    "gemma3_text": _GEMMA,
    "gemma3": {"text_config": {**_SIZES, **_GEMMA}, "vision_config": {"hidden_size": 8}},
    "granitemoe": {
        "quantization_config": FORMATS["awq"].settings,
        **_SPARSE,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.3,
    },
    "granitemoeshared": {**_SPARSE, "shared_intermediate_size": 8},
    "granitemoehybrid": {
        **_SPARSE,
        "shared_intermediate_size": 8,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
    },
    "phimoe": {**_SPARSE, "rope_parameters": _LONG},
    "ernie4_5_moe": {**_SPARSE, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "deepseek_v2": {**_LATENT, "rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.7}},
    "deepseek_v3": {**_LATENT, "n_group": 2, "topk_group": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
    "lfm2_moe": {**_SPARSE, "layer_types": ["conv", "full_attention", "conv"]},
    "kimi_k2": {**_LATENT, "n_group": 1, "topk_group": 1, "q_lora_rank": None},
    "glm4_moe": {**_SIGMOID, "head_dim": 8, "partial_rotary_factor": 0.5, "use_qk_norm": True},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": [2, 2, 2], "head_dim": 8},
    "hy_v3": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "sarvam_moe": {**_SIGMOID, "head_dim": 8},
    "sarvam_mla": {**_LATENT, "n_group": 2, "topk_group": 1},
    "flex_olmo": _SPARSE,
    "exaone_moe": {**_SPARSE, "num_shared_experts": 1, "sliding_window": 8, "head_dim": 8},
    "flint": {**_SPARSE, "shared_expert_intermediate_size": 8, "head_dim": 8},
    "qwen3_next": _DELTA,
    "qwen3_5_moe_text": {**_DELTA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "qwen3_5_moe": {"text_config": {**_SIZES, **_DELTA}, "vision_config": {"hidden_size": 8}},
    "afmoe": {**_SPARSE, "head_dim": 8, "mup_enabled": True},
    "mellum": {**_SPARSE, "head_dim": 8},
    "granitemoe_swa": {**_SPARSE, "shared_intermediate_size": 8},
    "solar_open": {**_SIGMOID, "head_dim": 8},
    "dots1": {**_SIGMOID, "sliding_window": 8, "max_window_layers": 1},
    "minimax_m2": {**_SPARSE, "head_dim": 8, "rotary_dim": 4},
    "glm4_moe_lite": {**_LATENT, "mlp_layer_types": ["dense", "sparse", "sparse"]},
}


class ModelConfigs(Kind):
    """A tree with changes, in most cases; else its bytes, or a value that asks for very much."""

    name = "configs"

    def make_valid(self, folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from mixtura.shapes.families import family_of, shape_of

        assert self._families == sorted(_all_families())
        for model_type, keys in CONFIGS.items():
            config = {**({} if model_type == "dbrx" else _SIZES), **keys, "model_type": model_type}
            family = family_of(config)
            pieces = family.pieces(shape_of(family.read(config)))
            tensors = {piece.stored: torch.zeros(piece.shape) for piece in pieces}
            own = folder / model_type
            own.mkdir()
            (own / "config.json").write_text(json.dumps(config))
            save_file(tensors, own / "model.safetensors")

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        own = valid / rng.choice(self._families)
        text = (own / "config.json").read_bytes()
        spoilt = case / own.name
        spoilt.mkdir()
        (spoilt / "model.safetensors").hardlink_to(own / "model.safetensors")
        if rng.randrange(8) == 0:
            text = spoilt_bytes(rng, text)
        else:
            tree = spoilt_tree(rng, json.loads(text), odd=_odd)
            text = json_text(tree, rng).encode()
        (spoilt / "config.json").write_bytes(text)

    def parse(self, case: Path) -> None:
        for own in case.iterdir():
            json.loads((own / "config.json").read_bytes())

    def read(self, case: Path) -> None:
        from mixtura.checkpoints.inspection import inspect_model
        from mixtura.checkpoints.loaded_model import decoder_config, open_source
        from mixtura.models.blueprint import without_weights
        from mixtura.shapes.families import family_of

        for own in case.iterdir():
            inspect_model(own)
            # As loading does, up to the weights.
            source = open_source(own)
            with without_weights():
                decoder_config(family_of(source.config), source).build()

    @cached_property
    def _families(self) -> list[str]:
        return sorted(CONFIGS)


def _all_families() -> list[str]:
    from mixtura.shapes.families import FAMILIES

    return list(FAMILIES)


def _odd(rng: Random) -> Any:
    """Values that mean something in a config of some family, too."""
    if rng.randrange(3):
        return odd_value(rng)
    return rng.choice(
        [
            *("silu", "gelu", "swiglu", "default", "linear", "yarn", "llama3", "longrope", "eager"),
            *("sliding_attention", "full_attention", "greedy", "noaux_tc", "group_limited_greedy"),
            *([0, 1, 2], [-1], [5], ["full_attention"] * 3, list(range(100_000)), [1.0, 1.0]),
            *(_YARN, _LLAMA3, _LONG, {"rope_type": "linear", "factor": 2.0}, Raw("9" * 6000)),
            *({"quant_method": "fp8"}, {"quant_method": "mxfp4"}, 2_000_000_000, 10**12, 1e-300),
        ]
    )


KINDS = [ModelConfigs()]
