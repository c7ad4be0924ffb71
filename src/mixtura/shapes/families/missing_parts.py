"""What known MoE families need and Mixtura lacks, by model_type of transformers.

Families that Mixtura reads are not in this table. `docs/make_families.py` writes docs/families.md
from this table and from the families that Mixtura reads.
"""

from collections.abc import Mapping

_KIMI_DELTA = "Kimi Delta Attention layers"
_SHORT_CONV = "short convolutions between layers"
_INDEX = "a sparse attention index"
_LATENT_GATE = "a gate on latent attention's output"
_NO_ROPE = "latent attention without RoPE"
_HEADS = "heads that differ by layer"
_RELATIVE = "relative positions"
_HYPER = "hyper-connections"
_PARALLEL = "attention and FFN side by side"
_QUERY_SCALE = "a query scale that follows the position"

MISSING_PARTS: Mapping[str, tuple[str, ...]] = {
    "axk1": ("a norm after the FFN in MoE layers alone",),
    "axk2": (_INDEX, _LATENT_GATE, "gated norms"),
    "bailing_hybrid": (_KIMI_DELTA, _LATENT_GATE),
    "beam": (_QUERY_SCALE, "residuals scaled by depth"),
    "cohere2_moe": (_PARALLEL,),
    "deepseek_v32": (_INDEX,),
    "deepseek_v4": ("compressed attention", _INDEX, _HYPER),
    "doge": ("dynamic mask attention", "experts found by product keys"),
    "dots3_note": (_INDEX,),
    "dots3_note_text": (_INDEX,),
    "gemma4": (_HEADS, "a dense FFN beside the experts"),
    "gemma4_text": (_HEADS, "a dense FFN beside the experts"),
    "glm_moe_dsa": (_INDEX,),
    "hy_v4": (_INDEX, _HYPER),
    "inkling2_loop_text": (_SHORT_CONV, _RELATIVE, "attention over earlier layers"),
    "inkling2_text": (_SHORT_CONV, _RELATIVE, "attention over earlier layers"),
    "inkling_text": (_SHORT_CONV, _RELATIVE),
    "jamba": ("Mamba layers",),
    "jetmoe": ("experts of attention heads",),
    "kimi_linear": (_KIMI_DELTA, _NO_ROPE),
    "kolibri1": ("a choosing bias on the logits of a sigmoid router",),
    "laguna": ("a softplus gate on attention's output", _HEADS),
    "lara_mini": ("a reader of its config and tensors",),
    "llama4": ("chunked attention", _QUERY_SCALE, "weights on experts' inputs"),
    "llama4_text": ("chunked attention", _QUERY_SCALE, "weights on experts' inputs"),
    "longcat_flash": ("two attentions a layer", "experts that compute nothing"),
    "mimo_v2_flash": (_HEADS, "values narrower than keys"),
    "minimax": ("lightning attention layers",),
    "minimax_m3_vl_text": (_INDEX,),
    "nemotron_h": ("layers of one branch each",),
    "qwen4_exp": (_INDEX, "n-gram embeddings"),
    "qwen4_exp_text": (_INDEX, "n-gram embeddings"),
    "zaya": ("compressed convolutional attention", "a router of several layers"),
}


def in_words(parts: tuple[str, ...]) -> str:
    """Joins parts as in a sentence: a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
