"""ERNIE 4.5 MoE: softmax scores with a choosing bias, shared experts, interleaved RoPE pairs."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece, shape_of
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import ffn_pieces
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.moe import MoEShape


class Ernie45Moe(SparseLlama):
    """A range of layers has MoEs. Combine weights are renormalised softmax scores.

    The choosing bias does not change them.

    The two rows of a stored RoPE pair of queries or keys are neighbours. In Mixtura's decoder the
    two rows are half a head apart.
    """

    model_type = "ernie4_5_moe"
    architecture = "Ernie4_5_MoeForCausalLM"
    in_fp32 = frozenset({"gates", "rotation"})
    drafting_keys = ("num_nextn_predict_layers",)
    left_out = MappingProxyType(
        {
            **SparseLlama.left_out,
            r"model\.mtp_.*": "multi-token prediction, which drafts tokens beyond the next",
        }
    )
    default_theta = 500_000.0
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "use_bias": False,
            "moe_k": 6,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
            "moe_norm_min": 1e-12,
        }
    )
    count_key = "moe_num_experts"

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        keys.expect("use_bias", False, None)
        # In this family transformers reads `use_bias` instead of `attention_bias`.
        keys.expect("attention_bias", False, None)
        least = keys.number("moe_norm_min")
        if least > _LEAST:
            raise ConfigError(
                f"config.json: moe_norm_min={least:g} in a {self.model_type} model, which divides "
                f"a token's weights by no less; Mixtura runs it with {_LEAST:g} at most"
            )
        tree = super().read({**config, "num_experts_per_tok": keys.integer("moe_k")})
        shared = keys.integer("moe_num_shared_experts", 0) * tree["moe"]["expert_width"]
        router = {"kind": "softmax_topk", "choosing_bias": True}
        tree["moe"] |= {"shared_width": shared, "router": router}
        return tree

    def read_placement(self, keys: Keys) -> Tree:
        layers, step = keys.integer("num_hidden_layers"), keys.integer("moe_layer_interval")
        first, last = keys.integer("moe_layer_start_index"), keys.integer(_END)
        if last in (-1, layers - 1):
            return {"placement": {"first_dense": first, "every": step}}
        only = [layer for layer in range(first, last + 1) if (layer + 1) % step == 0]
        return {"placement": {"only": only}}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written, moe = super().write(decoder), decoder["moe"]
        for key in ("num_experts_per_tok", "norm_topk_prob", "attention_bias"):
            del written[key]
        shared, left = divmod(moe["shared_width"], moe["expert_width"])
        if left:
            raise ConfigError(
                f"moe.shared_width={moe['shared_width']} is no multiple of "
                f"expert_width={moe['expert_width']}, as a {self.model_type} config has it; save "
                "it as another family"
            )
        return {
            **written,
            "use_bias": False,
            "moe_k": moe["top_k"],
            "moe_num_shared_experts": shared,
            **_write_placement(decoder),
        }

    def attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        heads = shape.attention
        assert isinstance(heads, AttentionShape), "this family reads no other"
        width, head = shape.width, heads.head_dim
        start, whole = 0, (heads.heads + 2 * heads.kv_heads, head, width)
        counts = {"q_proj": heads.heads, "k_proj": heads.kv_heads, "v_proj": heads.kv_heads}
        for name, count in counts.items():
            rows = slice(start, start + count)
            for at, of in _values(head) if name == "v_proj" else _pairs(head):
                yield Piece(
                    f"{stored}{name}.weight",
                    (count * head, width),
                    f"{ours}qkv.weight",
                    at=(rows, at),
                    of=(slice(None), of),
                    view=whole,
                    stored_view=(count, head, width),
                )
            start += count
        yield Piece(f"{stored}o_proj.weight", (width, heads.heads * head), f"{ours}out.weight")

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        bias = f"{stored}moe_statics.e_score_correction_bias"
        yield Piece(bias, (1, moe.num_experts), f"{ours}router.bias", of=(0,))
        if moe.shared_width:
            name = f"{stored}shared_experts."
            yield from ffn_pieces(width, moe.shared_width, name, f"{ours}shared.")


_END = "moe_layer_end_index"
# The largest moe_norm_min that is supported. transformers divides a token's weights by their sum or
# by moe_norm_min, whichever is larger. The sum is always larger than 1e-12, so division by the sum
# gives transformers' weights, apart from the last bits.
_LEAST = 1e-12
_Span = tuple[slice, slice]


def _pairs(head: int) -> list[_Span]:
    """(Mixtura's rows, stored rows) of a head: the first row of each pair, then the second row."""
    half = head // 2
    return [(slice(0, half), slice(0, None, 2)), (slice(half, None), slice(1, None, 2))]


def _values(head: int) -> list[_Span]:
    """(Mixtura's rows, stored rows) of a head's values, which RoPE does not rotate."""
    return [(slice(0, head), slice(0, head))]


def _write_placement(decoder: Mapping[str, Any]) -> Tree:
    """The config keys that `read_placement` reads.

    `moe_layer_interval` is the distance between the first two MoE layers.
    """
    placement, last = decoder["moe"]["placement"], decoder["layers"] - 1
    first, step = placement["first_dense"], placement["every"]
    if placement["only"] is not None:
        sparse = list(shape_of(decoder).moe_shapes)
        first, last = sparse[0], sparse[-1]
        step = sparse[1] - sparse[0] if len(sparse) > 1 else 1
    return {"moe_layer_start_index": first, _END: last, "moe_layer_interval": step}
