"""DeepSeek-V2 and V3, and Kimi K2: latent attention, shared experts, many small routed experts."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

from mixtura.config import Tree
from mixtura.shapes.attention import LatentAttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.latent import latent_pieces, read_latent, write_latent
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.families.shared_experts import SharedExperts, SigmoidExperts

_RANKS: Mapping[str, Any] = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


class LatentLlama(SparseLlama):
    """A sparse Llama with latent attention."""

    attention_kind = "latent"
    interleaved: bool = True
    """whether the two rows of a stored RoPE pair are neighbours; in Mixtura's decoder the two rows
    of a pair are half of the rotated dims apart"""

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return read_latent(self.keys(config), config, self.model_type)

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        return write_latent(attention)

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        assert isinstance(shape.attention, LatentAttentionShape), "this family reads no other"
        yield from latent_pieces(
            shape.width, shape.attention, stored, ours, interleaved=self.interleaved
        )


class DeepseekV2(LatentLlama, SharedExperts):
    """Combine weights are softmax scores times a factor.

    A config may group the experts, and restrict a token to the experts of its best groups.
    """

    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    in_fp32 = frozenset({"gates", "weights", "rotation"})
    defaults = MappingProxyType({**SharedExperts.defaults, **_RANKS, "topk_method": "greedy"})

    def read_router(self, keys: Keys) -> Tree:
        keys.expect("scoring_func", "softmax")
        # Renormalised weights are refused, because implementations differ: for such weights the
        # authors' code ignores routed_scaling_factor, and other code applies it.
        keys.expect("norm_topk_prob", False, None)
        keys.expect("topk_method", "greedy", "group_limited_greedy")
        scale, groups, kept = keys.number("routed_scaling_factor"), 1, 1
        if keys.given("topk_method") == "group_limited_greedy":
            groups, kept = keys.integer("n_group"), keys.integer("topk_group")
        if groups == 1 and scale == 1:
            return {"kind": "softmax_topk", "renormalise": False}
        grouped = {"kind": "deepseek_v2", "groups": groups, "groups_kept": kept}
        return {**grouped, "renormalise": False, "scale": scale}

    def write_router(self, router: Mapping[str, Any]) -> Tree:
        written = super().write_router(router)
        method = "greedy" if written["n_group"] == 1 else "group_limited_greedy"
        return {**written, "topk_method": method, "scoring_func": "softmax"}


class DeepseekV3(LatentLlama, SigmoidExperts):
    """Scores are sigmoids, and experts are chosen with a choosing bias."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    drafting_keys = ("num_nextn_predict_layers", "num_mtp_layers")
    defaults = MappingProxyType(
        {
            # Each head of V3 has keys of its own, so an absent key means num_attention_heads.
            **{k: v for k, v in SigmoidExperts.defaults.items() if k != "num_key_value_heads"},
            **_RANKS,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "rope_interleave": True,
            "num_mtp_layers": 1,
        }
    )

    def __init__(self, *, interleaved: bool = True, drafting: range = range(0)) -> None:
        super().__init__(drafting=drafting)
        self.interleaved = interleaved

    def of_config(self, config: Mapping[str, Any]) -> Self:
        interleaved = self.keys(config).flag("rope_interleave")
        return type(self)(interleaved=interleaved, drafting=self.drafting_layers(config))

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return {
            **super().write(decoder),
            "rope_interleave": self.interleaved,
            "num_nextn_predict_layers": 0,
        }


class KimiK2(DeepseekV3):
    """Kimi K2's text model, which is DeepSeek-V3 under another name.

    transformers has no class of this name, and runs the authors' code from the hub.
    """

    model_type = "kimi_k2"
