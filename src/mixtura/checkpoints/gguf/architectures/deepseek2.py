"""DeepSeek-V2 and V3: latent attention, whose up-projection llama.cpp stores in two parts.

HF stands for Hugging Face. A heads, N dims of a head's key that RoPE does not rotate, V dims of a
head's value, R dims of the latent, P pairs of dims that RoPE rotates in a head.
"""

from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.architectures.architecture import (
    HEAD,
    NAMES,
    Architecture,
    layers_of,
    tokens_of,
    vocabulary_of,
)
from mixtura.checkpoints.gguf.architectures.llama import expert_counts
from mixtura.checkpoints.gguf.architectures.routed_experts import (
    SIGMOID,
    SOFTMAX,
    experts_keys,
    layers_config,
    router_config,
)
from mixtura.checkpoints.gguf.links import EVERY, Named, same
from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.checkpoints.gguf.rope import LOG_MULTIPLIER, rope_parameters
from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes import DecoderShape, LatentAttentionShape
from mixtura.shapes.families import FAMILIES, Piece
from mixtura.shapes.families.latent import write_latent

# llama.cpp recognises a model without a query latent by its number of layers. DeepSeek-V2-Lite has
# 27 layers; another such model has 26.
_WITHOUT_QUERY_RANK = (26, 27)


class Deepseek2(Architecture):
    """A file is read as V2 if its router scores experts by a softmax, and as V3 for a sigmoid."""

    name = "deepseek2"
    dense_layers = True
    names = MappingProxyType(
        {
            **NAMES,
            "self_attn.q_a_proj": "attn_q_a",
            "self_attn.q_a_layernorm": "attn_q_a_norm",
            "self_attn.q_b_proj": "attn_q_b",
            "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
            "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        }
    )

    def model_type(self, metadata: Metadata) -> str:
        # The first GGUF files of V2 lack this key. Their router scores experts by a softmax.
        scores = metadata.count(".expert_gating_func", SOFTMAX)
        if scores not in {SOFTMAX, SIGMOID}:
            raise metadata.error(".expert_gating_func", f"{scores}, expected 1 or 2")
        return "deepseek_v3" if scores == SIGMOID else "deepseek_v2"

    def config(
        self, metadata: Metadata, names: Container[str], factors_P: NDArray[np.float32] | None
    ) -> Tree:
        heads, model_type = metadata.count(".attention.head_count"), self.model_type(metadata)
        vocabulary = vocabulary_of(metadata)
        rope = self.rope(metadata, _rope_dim(metadata), factors_P)
        expert_width = metadata.count(".expert_feed_forward_length")
        return {
            "architectures": [FAMILIES[model_type].architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": metadata.count(".embedding_length"),
            "num_hidden_layers": layers_of(metadata),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": metadata.count(".feed_forward_length"),
            "vocab_size": vocabulary,
            "max_position_embeddings": metadata.count(".context_length"),
            "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": HEAD not in names,
            "rope_theta": rope["rope_theta"],
            "rope_parameters": rope,
            **self._heads(metadata),
            **expert_counts(metadata, "n_routed_experts"),
            "moe_intermediate_size": expert_width,
            **layers_config(metadata),
            **_router(metadata, model_type),
            **tokens_of(metadata, vocabulary),
        }

    def rope(
        self, metadata: Metadata, rope_dim: int, factors_P: NDArray[np.float32] | None
    ) -> Tree:
        rope = rope_parameters(metadata, rope_dim, factors_P, read_elsewhere={LOG_MULTIPLIER})
        share = round(10 * metadata.number(LOG_MULTIPLIER, 0.0), 6)
        return {**rope, "mscale": share, "mscale_all_dim": share} if share else rope

    def _heads(self, metadata: Metadata) -> Tree:
        # Older files lack the `_mla` keys; their key_length and value_length are those of one head.
        whole = metadata.count(".attention.key_length_mla", metadata.count(".attention.key_length"))
        value = metadata.count(
            ".attention.value_length_mla", metadata.count(".attention.value_length")
        )
        rope_dim = _rope_dim(metadata)
        if rope_dim >= whole:
            raise metadata.error(
                ".rope.dimension_count", f"{rope_dim}, expected less than a head's {whole}"
            )
        ranked = ".attention.q_lora_rank" in metadata
        return {
            "q_lora_rank": metadata.count(".attention.q_lora_rank") if ranked else None,
            "kv_lora_rank": metadata.count(".attention.kv_lora_rank"),
            "qk_nope_head_dim": whole - rope_dim,
            "qk_rope_head_dim": rope_dim,
            "v_head_dim": value,
        }

    def keys(self, decoder: Mapping[str, Any]) -> Tree:
        moe = decoder["moe"]
        router = moe["router"]
        if router["kind"] == "deepseek_v2" and router["groups"] > 1:
            raise ConfigError(
                f"router.groups={router['groups']} of deepseek_v2: llama.cpp ranks a group by its "
                "two best experts where this router takes the best; write it to a Hugging Face "
                "folder"
            )
        return {**super().keys(decoder), **experts_keys(moe)}

    def head_keys(self, attention: Mapping[str, Any]) -> Tree:
        rank, rope_dim = attention["kv_rank"], attention["turning_dim"]
        found: Tree = {
            # All heads share one latent, so llama.cpp counts one KV head. The value of this head is
            # the latent; its key is the latent with the rotated dims appended.
            ".attention.head_count_kv": 1,
            ".attention.key_length": rank + rope_dim,
            ".attention.value_length": rank,
            ".attention.key_length_mla": attention["nope_dim"] + rope_dim,
            ".attention.value_length_mla": attention["value_dim"],
            ".attention.kv_lora_rank": rank,
            ".rope.dimension_count": rope_dim,
        }
        if attention["query_rank"] is not None:
            found[".attention.q_lora_rank"] = attention["query_rank"]
        return found | _log_multiplier(attention)

    def check(self, shape: DecoderShape) -> None:
        super().check(shape)
        moe, attention = shape.moe, shape.attention
        assert moe is not None, "both families have one"
        assert isinstance(attention, LatentAttentionShape), "and latent attention"
        if attention.norm_epsilon != shape.norm.epsilon:
            raise ConfigError(
                f"norm.epsilon={shape.norm.epsilon:g} and attention.norm_epsilon="
                f"{attention.norm_epsilon:g} of the latents: llama.cpp has one for both in "
                f"{self.name}"
            )
        if attention.query_rank is None and shape.layers not in _WITHOUT_QUERY_RANK:
            raise ConfigError(
                f"attention.query_rank=None in {shape.layers} layers: llama.cpp recognises models "
                f"without one by their layers, {' or '.join(map(str, _WITHOUT_QUERY_RANK))}; keep "
                "it as a Hugging Face folder"
            )
        if not moe.shared_width:
            raise ConfigError(
                f"moe.shared_width=0: llama.cpp runs {self.name} with a shared expert alone; "
                "write it as another family"
            )

    def in_block(
        self,
        one: Named,
        block: str,
        rest: str,
        shape: DecoderShape,
        present: Container[str],
    ) -> Iterator[Piece]:
        whole = f"{block}attn_kv_b.weight"
        if rest == "mlp.gate.e_score_correction_bias":
            yield from same(one, f"{block}exp_probs_b.bias")
        elif rest == "self_attn.kv_b_proj.weight" and whole in present:
            yield from same(one, whole)
        elif rest == "self_attn.kv_b_proj.weight":
            assert isinstance(shape.attention, LatentAttentionShape), "these families' own"
            yield from _keys_and_values(one, block, shape.attention)
        else:
            yield from super().in_block(one, block, rest, shape, present)


def _keys_and_values(one: Named, block: str, attention: LatentAttentionShape) -> Iterator[Piece]:
    """Split HF's matrix (A (N + V), R) into two GGUF tensors.

    The tensor for keys is (A, R, N), and the tensor for values is (A, V, R). The tensor for keys is
    transposed, because llama.cpp multiplies queries by it.
    """
    heads, rank = attention.heads, attention.kv_rank
    nope, value = attention.nope_dim, attention.value_dim
    view = (heads, nope + value, rank)
    yield Piece(
        f"{block}attn_k_b.weight",
        (heads, rank, nope),
        one.name,
        at=(EVERY, slice(0, nope)),
        view=view,
        transposed=True,
    )
    yield Piece(
        f"{block}attn_v_b.weight",
        (heads, value, rank),
        one.name,
        at=(EVERY, slice(nope, None)),
        view=view,
    )


def _rope_dim(metadata: Metadata) -> int:
    return metadata.count(".rope.dimension_count")


def _router(metadata: Metadata, model_type: str) -> Tree:
    weighed = router_config(metadata)
    if model_type == "deepseek_v3":
        return {**weighed, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    method = "greedy" if weighed["n_group"] == 1 else "group_limited_greedy"
    return {**weighed, "scoring_func": "softmax", "topk_method": method}


def _log_multiplier(attention: Mapping[str, Any]) -> Tree:
    """Make the key of YaRN's attention scale, if any; the value is 0.1 times `mscale_all_dim`."""
    share = write_latent(attention)["rope_parameters"].get("mscale_all_dim")
    return {} if share is None else {LOG_MULTIPLIER: 0.1 * share}
