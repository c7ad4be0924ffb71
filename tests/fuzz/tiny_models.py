"""Models so small that a case is read in milliseconds, and the tokenizer that goes with them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixtura.models import Decoder
    from mixtura.tokenizers import SubwordTokenizer

VOCABULARY = 288
_DENSE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
_SPARSE = {
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mixtral": _SPARSE,
    "qwen2_moe": {**_SPARSE, "shared_expert_intermediate_size": 32},
    "deepseek_v2": {
        **_SPARSE,
        "num_key_value_heads": 2,
        "n_routed_experts": 3,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    "gpt_oss": {**_SPARSE, "head_dim": 16, "sliding_window": 8},
}


def tiny_models() -> "Iterator[tuple[str, Decoder]]":
    import torch

    from mixtura.models import DecoderConfig
    from mixtura.shapes.families import family_named

    torch.manual_seed(0)
    for model_type, keys in CONFIGS.items():
        config = family_named(model_type).read({**_DENSE, **keys})
        yield model_type, DecoderConfig.parse(config).build().eval()


def tiny_tokenizer() -> "SubwordTokenizer":
    """Byte-level BPE of at most 288 tokens."""
    from mixtura.tokenizers import BpeConfig

    line = "the cat sat on the mat, the hat and the bat 1 22 333 "
    return BpeConfig(kind="bpe", vocabulary=VOCABULARY).build(lambda _: [line * 4])
