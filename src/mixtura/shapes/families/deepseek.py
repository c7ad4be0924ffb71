"""DeepSeek-V2 and V3: latent attention, shared experts, and many small routed experts."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.attention import LatentAttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece, shape_of
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.latent import latent_pieces, read_latent, write_latent
from mixtura.shapes.families.layout import ffn_pieces
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.moe import MoEShape


class DeepseekV2(SparseLlama):
    """Combine weights are softmax scores times a factor.

    A config may restrict a token to experts of the token's best groups.
    """

    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    in_fp32 = frozenset({"gates", "weights", "rotation"})
    attention_kind = "latent"
    count_key = "n_routed_experts"
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "topk_method": "greedy",
            "n_group": None,
            "topk_group": None,
            "routed_scaling_factor": 1.0,
        }
    )

    def __init__(self, *, interleaved: bool = True) -> None:
        """`interleaved`: whether the two rows of a stored RoPE pair are neighbours.

        The two rows of a pair of Mixtura's decoder are half of the rotated dims apart.
        """
        self.interleaved = interleaved

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        tree = super().read(config)
        shared = keys.integer("n_shared_experts", 0) * tree["moe"]["expert_width"]
        tree["moe"] |= {"shared_width": shared, "router": self.read_router(keys)}
        return tree

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        return read_latent(self.keys(config), config, self.model_type)

    def read_router(self, keys: Keys) -> Tree:
        keys.expect("scoring_func", "softmax")
        # Renormalised weights are refused, because implementations differ: the authors' code then
        # drops routed_scaling_factor, and other code keeps it.
        keys.expect("norm_topk_prob", False, None)
        keys.expect("topk_method", "greedy", "group_limited_greedy")
        scale, groups, kept = keys.number("routed_scaling_factor"), 1, 1
        if keys.given("topk_method") == "group_limited_greedy":
            groups, kept = keys.integer("n_group"), keys.integer("topk_group")
        if groups == 1 and scale == 1:
            return {"kind": "softmax_topk", "renormalise": False}
        grouped = {"kind": "deepseek_v2", "groups": groups, "groups_kept": kept}
        return {**grouped, "renormalise": False, "scale": scale}

    def read_placement(self, keys: Keys) -> Tree:
        first, step = keys.integer("first_k_dense_replace"), keys.integer("moe_layer_freq", 1)
        if step == 1:
            return {"placement": {"first_dense": first}}
        layers = range(first, keys.integer("num_hidden_layers"))
        return {"placement": {"only": [layer for layer in layers if layer % step == 0]}}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write(decoder)
        moe = decoder["moe"]
        shared, left = divmod(moe["shared_width"], moe["expert_width"])
        if left:
            raise ConfigError(
                f"moe.shared_width={moe['shared_width']} is no multiple of "
                f"expert_width={moe['expert_width']}, as a {self.model_type} config has it; save "
                "it as another family"
            )
        return {
            **written,
            **_write_placement(decoder),
            **self.write_router(moe["router"]),
            "n_shared_experts": shared,
        }

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        return write_latent(attention)

    def write_router(self, router: Mapping[str, Any]) -> Tree:
        groups = router.get("groups", 1)
        return {
            "topk_method": "greedy" if groups == 1 else "group_limited_greedy",
            "scoring_func": "softmax",
            "n_group": groups,
            "topk_group": router.get("groups_kept", 1),
            "routed_scaling_factor": router.get("scale", 1.0),
        }

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        assert isinstance(shape.attention, LatentAttentionShape), "this family reads no other"
        yield from latent_pieces(
            shape.width, shape.attention, stored, ours, interleaved=self.interleaved
        )

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        if moe.shared_width:
            yield from ffn_pieces(
                width, moe.shared_width, f"{stored}shared_experts.", f"{ours}shared."
            )


# Keys whose defaults V3 does not take from V2. V3 has only one topk_method, and its heads always
# have keys of their own.
_NOT_OF_V3 = ("topk_method", "num_key_value_heads")


class DeepseekV3(DeepseekV2):
    """Scores are sigmoids, and experts are chosen with a choosing bias.

    A group of experts is ranked by the sum of the two highest scores (with bias) in it.
    """

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    in_fp32 = frozenset({"gates", "weights"})
    drafting_keys = ("num_nextn_predict_layers", "num_mtp_layers")
    defaults = MappingProxyType(
        {
            **{key: value for key, value in DeepseekV2.defaults.items() if key not in _NOT_OF_V3},
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "rope_interleave": True,
            "num_mtp_layers": 1,
        }
    )
    group_top: ClassVar[int] = 2

    def __init__(self, *, interleaved: bool = True, drafting: range = range(0)) -> None:
        """`drafting`: numbers of layers that serve only multi-token prediction.

        These layers follow the model's last layer and are not read.
        """
        super().__init__(interleaved=interleaved)
        if drafting:
            numbers = "|".join(map(str, drafting))
            word = "multi-token prediction, which drafts tokens beyond the next"
            self.left_out = {**self.left_out, rf"model\.layers\.({numbers})\..*": word}

    def of_config(self, config: Mapping[str, Any]) -> Self:
        keys = self.keys(config)
        first = keys.integer("num_hidden_layers")
        return type(self)(
            interleaved=keys.flag("rope_interleave"),
            drafting=range(first, first + keys.integer(keys.first(*self.drafting_keys))),
        )

    def read_router(self, keys: Keys) -> Tree:
        keys.expect("scoring_func", "sigmoid")
        keys.expect("topk_method", "noaux_tc")
        groups = keys.integer("n_group")
        weighed = {
            "renormalise": keys.flag("norm_topk_prob"),
            "scale": keys.number("routed_scaling_factor"),
        }
        if groups == 1:
            return {"kind": "sigmoid_topk", "choosing_bias": True, **weighed}
        kept = keys.integer("topk_group")
        grouped = {"kind": "deepseek_v3", "groups": groups, "groups_kept": kept}
        return {**grouped, "group_top": self.group_top, **weighed}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        return {
            **super().write(decoder),
            "rope_interleave": self.interleaved,
            "num_nextn_predict_layers": 0,
        }

    def write_router(self, router: Mapping[str, Any]) -> Tree:
        written = super().write_router(router)
        return {**written, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        bias = f"{stored}{self.gate_name}.e_score_correction_bias"
        yield Piece(bias, (moe.num_experts,), f"{ours}router.bias")


def _write_placement(decoder: Mapping[str, Any]) -> Tree:
    """The config keys that `read_placement` reads.

    `moe_layer_freq` is the distance between the first two MoE layers.
    """
    placement = decoder["moe"]["placement"]
    if placement["only"] is None and placement["every"] == 1:
        return {"first_k_dense_replace": placement["first_dense"], "moe_layer_freq": 1}
    sparse = list(shape_of(decoder).moe_shapes)
    step = sparse[1] - sparse[0] if len(sparse) > 1 else 1
    return {"first_k_dense_replace": sparse[0], "moe_layer_freq": step}
