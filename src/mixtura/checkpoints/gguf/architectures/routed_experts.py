"""Translates metadata of MoEs like DeepSeek's: shared experts, dense layers and the router."""

from collections.abc import Mapping
from typing import Any

from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.config import Tree

SOFTMAX, SIGMOID = 1, 2


def router_config(metadata: Metadata) -> Tree:
    """Read the config.json keys for groups of experts and for combine weights."""
    groups = metadata.count(".expert_group_count", 1)
    return {
        "routed_scaling_factor": metadata.number(".expert_weights_scale", 1.0),
        "norm_topk_prob": metadata.flag(".expert_weights_norm", False),
        "n_group": groups,
        "topk_group": metadata.count(".expert_group_used_count", groups),
    }


def layers_config(metadata: Metadata) -> Tree:
    """Read the config.json keys for shared experts and for dense layers."""
    return {
        "n_shared_experts": int(metadata.number(".expert_shared_count", 0)),
        "first_k_dense_replace": int(metadata.number(".leading_dense_block_count", 0)),
        "moe_layer_freq": 1,
    }


def experts_keys(moe: Mapping[str, Any]) -> Tree:
    """Translate the section `moe` of `DecoderConfig.model_dump()` to metadata."""
    router = moe["router"]
    sigmoid = router["kind"] in {"sigmoid_topk", "deepseek_v3"}
    found: Tree = {
        ".expert_shared_count": moe["shared_width"] // moe["expert_width"],
        ".expert_weights_scale": router.get("scale", 1.0),
        ".expert_weights_norm": router.get("renormalise", False),
        ".expert_gating_func": SIGMOID if sigmoid else SOFTMAX,
        ".leading_dense_block_count": moe["placement"]["first_dense"],
    }
    if router.get("groups", 1) > 1:
        found[".expert_group_count"] = router["groups"]
        found[".expert_group_used_count"] = router["groups_kept"]
    return found
