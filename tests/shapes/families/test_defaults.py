"""A key that is absent from a config.json means what it means in transformers, key by key."""

import dataclasses
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES

transformers = pytest.importorskip(
    "transformers", minversion="5.24", reason="the extra `hf` brings it; older ones differ in keys"
)

# Without these no model is described, and a config that lacks one is refused.
REQUIRED = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
        "num_experts_per_tok",
        "d_model",
        "n_heads",
        "n_layers",
        "max_seq_len",
        "attn_config",
        "ffn_config",
        "text_config",
    }
)
# No output of a forward pass in evaluation depends on these.
NEUTRAL = frozenset(
    {
        "initializer_range",
        "use_cache",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "pretraining_tp",
        "attention_dropout",
        "resid_pdrop",
        "emb_pdrop",
        "output_router_logits",
        "router_aux_loss_coef",
        "input_jitter_noise",
        "vision_config",
        *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
    }
)
# Read by `read_rope`, with the family's `default_theta`.
ROPE = frozenset({"rope_parameters"})
# Noise of training alone; ours and theirs compute without it.
TRAINING = {name: {"router_jitter_noise"} for name in ("mixtral", "minimax_m2")}
# A key of transformers' class that no output depends on in this family.
UNREAD = {
    "deepseek_v2": {"head_dim", "mlp_bias", "norm_topk_prob"},
    "deepseek_v3": {"num_key_value_heads"},
    "kimi_k2": {"num_key_value_heads"},
    "gemma3": {"tie_word_embeddings"},
    # How many tokens are computed at once.
    "granitemoehybrid": {"mamba_chunk_size"},
    "hunyuan_v1_moe": {"eod_token_id", "sep_token_id"},
    "mellum": {"num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types"},
    # A sum of two numbers in bf16 is rounded once with it and without it.
    "hy_v3": {"enable_moe_fp32_combine"},
}

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 512,
    "intermediate_size": 32,
    "num_hidden_layers": 34,
    # A multiple of every family's own number of key heads.
    "num_attention_heads": 128,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-3,
    "sliding_window": 7,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
}
WINDOWS = {"use_sliding_window": True, "max_window_layers": 2}
LATENT = {
    "num_key_value_heads": 128,
    "n_routed_experts": 16,
    "q_lora_rank": 6,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "n_shared_experts": 3,
    "first_k_dense_replace": 2,
    "n_group": 2,
    "topk_group": 2,
    "moe_intermediate_size": 8,
}
SIGMOID = {
    "n_routed_experts": 16,
    "n_shared_experts": 3,
    "n_group": 2,
    "topk_group": 2,
    "routed_scaling_factor": 3.0,
    "moe_intermediate_size": 8,
    "norm_topk_prob": False,
}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "tie_word_embeddings": True},
    "qwen2": WINDOWS,
    "qwen3": {**WINDOWS, "attention_bias": True},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 9, "clip_qkv": 2.0, "attention_bias": True},
    "qwen2_moe": {
        **WINDOWS,
        "num_experts": 5,
        "qkv_bias": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {**WINDOWS, "num_experts": 9, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    "gpt_oss": {"num_local_experts": 4, "attention_bias": False},
    "gemma3_text": {"query_pre_attn_scalar": 9, "tie_word_embeddings": False},
    "granitemoe": {
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 4.0,
    },
    "granitemoeshared": {"shared_intermediate_size": 8},
    "granitemoehybrid": {
        "num_local_experts": 4,
        "shared_intermediate_size": 8,
        "attention_multiplier": 0.3,
        "position_embedding_type": "rope",
        "layer_types": ["linear_attention", "full_attention"] * 17,
        "mamba_n_heads": 16,
        "mamba_n_groups": 2,
        "mamba_d_state": 7,
        "mamba_d_head": 96,
        "mamba_d_conv": 3,
        "mamba_expand": 3,
        "mamba_conv_bias": False,
        "mamba_proj_bias": True,
        "time_step_limit": [0.1, 2.0],
    },
    "phimoe": {"num_experts_per_tok": 2, "router_jitter_noise": 0.2, "lm_head_bias": True},
    "ernie4_5_moe": {
        "moe_k": 3,
        "moe_num_experts": 9,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 3,
        "moe_layer_end_index": 9,
        "moe_layer_interval": 2,
        "tie_word_embeddings": False,
    },
    "deepseek_v2": {
        **LATENT,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 3.0,
        "norm_topk_prob": False,
    },
    "deepseek_v3": {**LATENT, "routed_scaling_factor": 3.0, "norm_topk_prob": False},
    "lfm2": {
        "num_hidden_layers": 4,
        "full_attn_idxs": [1, 3],
        "conv_bias": True,
        "conv_L_cache": 4,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.5,
    },
    "lfm2_moe": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "conv_bias": True,
        "conv_L_cache": 4,
        "moe_intermediate_size": 8,
        "num_dense_layers": 1,
        "num_experts": 6,
        "use_expert_bias": False,
        "routed_scaling_factor": 3.0,
        "norm_topk_prob": False,
    },
    "kimi_k2": {**LATENT, "routed_scaling_factor": 3.0, "rope_interleave": False},
    "glm4_moe_lite": {
        **LATENT,
        "routed_scaling_factor": 3.0,
        "norm_topk_prob": False,
        "first_k_dense_replace": 1,
        "mlp_layer_types": ["sparse", "dense"] * 17,
    },
    "glm4_moe": {
        **SIGMOID,
        "first_k_dense_replace": 2,
        "attention_bias": True,
        "use_qk_norm": True,
        "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"},
        "partial_rotary_factor": 0.25,
    },
    "hunyuan_v1_moe": {"num_experts": 9, "moe_topk": 3, "attention_bias": True},
    "hy_v3": {
        "num_experts": 9,
        "num_shared_experts": 2,
        "moe_intermediate_size": 8,
        "router_scaling_factor": 1.5,
        "mlp_layer_types": ["sparse", "dense"] * 17,
    },
    "aria_text": {"moe_num_experts": 9, "moe_topk": 3, "moe_num_shared_experts": 1},
    "sarvam_moe": {**SIGMOID, "attention_bias": True, "use_qk_norm": False},
    "sarvam_mla": {**LATENT, "routed_scaling_factor": 3.0, "rope_interleave": False},
    "flex_olmo": {"num_experts": 9, "attention_bias": True},
    "exaone_moe": {
        "num_experts": 16,
        "num_shared_experts": 2,
        "moe_intermediate_size": 8,
        "n_group": 2,
        "topk_group": 2,
        "routed_scaling_factor": 3.0,
        "norm_topk_prob": False,
        "first_k_dense_replace": 2,
    },
    "flint": {
        "num_experts": 9,
        "shared_expert_intermediate_size": 8,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "norm_topk_prob": False,
        "attention_bias": True,
    },
    "afmoe": {
        "num_experts": 9,
        "num_shared_experts": 1,
        "num_dense_layers": 3,
        "moe_intermediate_size": 8,
        "route_scale": 2.0,
        "global_attn_every_n_layers": 3,
        "mup_enabled": True,
    },
    "mellum": {
        "num_experts": 9,
        "moe_intermediate_size": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 17,
        "mlp_layer_types": ["sparse", "dense"] * 17,
        "norm_topk_prob": False,
    },
    "granitemoe_swa": {
        "shared_intermediate_size": 8,
        "num_local_experts": 4,
        "attention_multiplier": 0.3,
        "layer_types": ["sliding_attention", "full_attention"] * 17,
        "layer_rope_theta": [0.0, 500.0] * 17,
    },
    "solar_open": {**SIGMOID, "attention_bias": True},
    "dots1": {**SIGMOID, "first_k_dense_replace": 2, "max_window_layers": 2},
    "minimax_m2": {"num_local_experts": 9, "rotary_dim": 4},
    "qwen3_next": {
        "num_experts": 9,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 24,
        "linear_value_head_dim": 12,
        "linear_conv_kernel_dim": 3,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "layer_types": ["linear_attention", "full_attention"] * 17,
        "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"},
        "partial_rotary_factor": 0.5,
    },
    "qwen3_5_moe_text": {
        "num_experts": 9,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 24,
        "linear_value_head_dim": 12,
        "linear_conv_kernel_dim": 3,
        "layer_types": ["linear_attention", "full_attention"] * 17,
    },
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 96,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 3.0},
        "ffn_config": {"moe_num_experts": 6, "moe_top_k": 2, "moe_normalize_expert_weights": 2.0},
    },
}
NAMES = [name for name in FAMILIES if name not in ("gemma3", "qwen3_5_moe")]
# Families without a class of their own name, and the class that serves them.
SERVED_BY = {"kimi_k2": "deepseek_v3"}


def class_of(name: str) -> Any:
    name = SERVED_BY.get(name, name)
    return transformers.models.auto.configuration_auto.CONFIG_MAPPING[name]


def fields_of(name: str) -> Mapping[str, Any]:
    """The keys of transformers' config class, and what each is where it is absent."""
    base = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    return {
        field.name: field.default
        for field in dataclasses.fields(class_of(name))
        if field.name not in base
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_transformers_config_class_is_known(name: str) -> None:
    family = FAMILIES[name]
    unknown = []
    for key, default in fields_of(name).items():
        passed = key in REQUIRED | NEUTRAL | ROPE
        passed |= key in TRAINING.get(name, set()) | UNREAD.get(name, set())
        if key in family.defaults:
            assert family.defaults[key] == default, f"{name}: {key}"
        elif not passed and name != "dbrx":
            unknown.append(f"{key}={default!r}")
    assert not unknown, f"{name}: say what these mean, or that nothing depends on them: {unknown}"


@pytest.mark.parametrize("name", NAMES)
def test_the_rotary_base_is_theirs(name: str) -> None:
    theta = class_of(name).default_theta
    own = getattr(FAMILIES[name], "default_theta", 10_000.0)
    assert own == (theta["global"] if isinstance(theta, dict) else theta)


def explicit(name: str, tree: Tree) -> Tree | None:
    """The config with all that transformers adds to it; None where it refuses the config."""
    try:
        return class_of(name)(**{key: tree[key] for key in tree if key != "model_type"}).to_dict()
    except Exception:  # noqa: BLE001, as its validation raises errors of many libraries
        return None


def read(name: str, tree: Tree) -> Any:
    return DecoderConfig.parse(FAMILIES[name].read(tree)).model_dump()


def readable(name: str, tree: Tree | None) -> bool:
    """Whether transformers and we read it."""
    try:
        return tree is not None and bool(read(name, tree))
    except ConfigError:
        return False


def without(tree: Tree, keys: tuple[str, ...]) -> Tree:
    return {key: value for key, value in tree.items() if key not in keys}


WINDOW_KEYS = ("use_sliding_window", "sliding_window", "layer_types", "max_window_layers")


@pytest.mark.parametrize("name", NAMES)
def test_a_config_without_a_key_is_the_one_that_transformers_makes_of_it(name: str) -> None:
    whole = explicit(name, {**SMALL, **OWN.get(name, {})})
    assert whole is not None
    ours = read(name, whole)
    present = [key for key in fields_of(name) if key in whole and key not in NEUTRAL]
    pairs = combinations([key for key in WINDOW_KEYS if key in whole], 2)
    absent = [(key,) for key in present] + [*pairs]
    changed = 0
    for keys in absent:
        left = without(whole, keys)
        theirs = explicit(name, left)
        try:
            found = read(name, left)
        except ConfigError:
            assert REQUIRED & set(keys) or not readable(name, theirs), (keys, "is refused")
            continue
        if theirs is not None:
            assert found == read(name, theirs), keys
            changed += found != ours
    # Most keys had a value of their own, so that leaving them out shows.
    assert changed > 2 or name == "dbrx"


@pytest.mark.parametrize("name", NAMES)
def test_null_is_no_absence(name: str) -> None:
    whole = explicit(name, {**SMALL, **OWN.get(name, {})})
    assert whole is not None
    for key in fields_of(name):
        if key not in whole or key in NEUTRAL:
            continue
        null = {**whole, key: None}
        theirs = explicit(name, null)
        if theirs is not None and readable(name, theirs) and readable(name, null):
            assert read(name, null) == read(name, theirs), key


def test_defaults_by_hand() -> None:
    deepseek = {**SMALL, **LATENT, "n_routed_experts": 32, "num_hidden_layers": 4}
    deepseek["num_experts_per_tok"] = 8
    for key in ("n_group", "topk_group", "norm_topk_prob", "first_k_dense_replace"):
        del deepseek[key]
    found = read("deepseek_v3", deepseek)
    router = found["moe"]["router"]
    assert (router["groups"], router["groups_kept"], router["scale"]) == (8, 4, 2.5)
    assert found["moe"]["placement"]["first_dense"] == 3
    plain = without(SMALL, ("sliding_window",))
    assert read("mistral", plain)["attention"]["local"]["window"] == 4096
    assert read("mistral", {**plain, "sliding_window": None})["attention"]["local"] is None
    gpt = read("gpt_oss", {**plain, "num_local_experts": 4})["attention"]
    assert (gpt["local"]["window"], gpt["local"]["layers"][:2]) == (128, (0, 2))
    dbrx = OWN["dbrx"]
    ffn = {"moe_num_experts": 6, "moe_top_k": 2, "ffn_hidden_size": 8}
    found = read("dbrx", {**SMALL, **dbrx, "attn_config": {}, "ffn_config": ffn})
    assert (found["attention"]["kv_heads"], found["attention"]["clip"]) == (1, None)
    assert found["moe"]["router"]["norm"] == 1.0
    # Of 34 layers those from the 28th on, 0 being the first; the window 4096.
    windows = read("qwen2", {**plain, "use_sliding_window": True})["attention"]["local"]
    assert (windows["window"], windows["layers"]) == (4096, tuple(range(28, 34)))


def test_ernies_least_sum_is_refused_where_it_would_show() -> None:
    config = {**SMALL, **OWN["ernie4_5_moe"], "moe_intermediate_size": 8}
    with pytest.raises(ConfigError, match=r"moe_norm_min=0\.5 in a ernie4_5_moe model.*1e-12"):
        read("ernie4_5_moe", {**config, "moe_norm_min": 0.5})
    assert read("ernie4_5_moe", {**config, "moe_norm_min": 0.0})


def test_each_family_has_its_model_type_as_key() -> None:
    assert {name: family.model_type for name, family in FAMILIES.items()} == {
        name: name for name in FAMILIES
    }
