"""DBRX: its own config keys and tensor names, stacked experts, and LayerNorm without a bias.

E experts, F expert width, D model width.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.attention import AttentionShape
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Family, Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.rotary import read_rope, write_rope
from mixtura.shapes.moe import MoEShape


class Dbrx(Family):
    """Every layer has an MoE, whose experts are stored in three stacks.

    The stacks hold w1, v1 and w2 of all experts, each of shape (E * F, D). The w2 of an expert is
    stored transposed.
    """

    model_type = "dbrx"
    architecture = "DbrxForCausalLM"

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = Keys(config, self.model_type)
        keys.expect("tie_word_embeddings", False)
        return {
            "width": keys.integer("d_model"),
            "vocabulary": keys.integer("vocab_size"),
            "context": keys.integer("max_seq_len"),
            "layers": keys.integer("n_layers"),
            "attention": self._read_attention(keys, config),
            # The default epsilon of LayerNorm, which every published config uses.
            "norm": {"kind": "layer", "epsilon": 1e-5},
            "activation": "swiglu",
            "moe": self._read_moe(keys.section("ffn_config"), keys.mapping("ffn_config")),
        }

    def _read_attention(self, keys: Keys, config: Mapping[str, Any]) -> Tree:
        heads, own = keys.integer("n_heads"), keys.section("attn_config")
        rope = {**config, "max_position_embeddings": keys.integer("max_seq_len")}
        base = own.given("rope_theta")
        if base is not None:
            # DBRX's own code reads this key, so the model was trained with this value. transformers
            # 5 ignores the key and writes a default, which may differ, into `rope_parameters`.
            rope["rope_parameters"] = {**keys.mapping("rope_parameters", {}), "rope_theta": base}
        return {
            "heads": heads,
            "kv_heads": own.integer("kv_n_heads", 1),
            "head_dim": keys.integer("d_model") // heads,
            "clip": own.given("clip_qkv"),
            **read_rope(rope, self.model_type),
        }

    def _read_moe(self, keys: Keys, config: Mapping[str, Any]) -> Tree:
        keys.section("ffn_act_fn", {"name": "silu"}).expect("name", "silu")
        return {
            "num_experts": keys.integer("moe_num_experts"),
            "top_k": keys.integer("moe_top_k"),
            "expert_width": keys.integer("ffn_hidden_size"),
            "activation": "swiglu",
            "router": {
                "kind": "dbrx",
                # null means that weights are not divided by a norm; an absent key means the 1-norm.
                "norm": config.get("moe_normalize_expert_weights", 1.0),
                "jitter": keys.number("moe_jitter_eps", 0.0),
            },
        }

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        attention, moe = decoder["attention"], decoder["moe"]
        if attention["kind"] != "grouped" or moe is None:
            raise ConfigError(
                "a dbrx config has grouped attention and an MoE in every layer, not attention.kind="
                f"{attention['kind']!r} and moe={'null' if moe is None else 'given'}; save it as "
                "another family"
            )
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "d_model": decoder["width"],
            "vocab_size": decoder["vocabulary"],
            "max_seq_len": decoder["context"],
            "n_layers": decoder["layers"],
            "n_heads": attention["heads"],
            "tie_word_embeddings": decoder["tied_head"],
            "rope_parameters": write_rope(attention),
            "attn_config": {
                "clip_qkv": attention["clip"],
                "kv_n_heads": attention["kv_heads"],
                "rope_theta": attention["rope_base"],
            },
            "ffn_config": {
                "ffn_hidden_size": moe["expert_width"],
                "moe_num_experts": moe["num_experts"],
                "moe_top_k": moe["top_k"],
                "moe_jitter_eps": moe["router"].get("jitter", 0.0),
                "moe_normalize_expert_weights": moe["router"].get("norm"),
            },
        }

    def pieces(self, shape: DecoderShape) -> Iterator[Piece]:
        width, table = shape.width, (shape.vocabulary, shape.width)
        yield Piece("transformer.wte.weight", table, "embedding.weight")
        for layer in range(shape.layers):
            stored, ours = f"transformer.blocks.{layer}.", f"blocks.{layer}."
            yield from self._attention_pieces(shape, f"{stored}norm_attn_norm.", ours)
            moe = shape.moe_of(layer)
            assert moe is not None, "`read` puts an MoE in every layer"
            yield from self._moe_pieces(width, moe, f"{stored}ffn.", f"{ours}ffn.")
        yield Piece("transformer.norm_f.weight", (width,), "norm.weight")
        yield Piece("lm_head.weight", table, "head.weight")

    def _attention_pieces(self, shape: DecoderShape, stored: str, ours: str) -> Iterator[Piece]:
        attention, width = shape.attention, shape.width
        assert isinstance(attention, AttentionShape), "this family reads no other"
        rows = attention.projected
        yield Piece(f"{stored}norm_1.weight", (width,), f"{ours}attention_norm.weight")
        yield Piece(f"{stored}attn.Wqkv.weight", (sum(rows), width), f"{ours}attention.qkv.weight")
        yield Piece(
            f"{stored}attn.out_proj.weight", (width, rows[0]), f"{ours}attention.out.weight"
        )
        yield Piece(f"{stored}norm_2.weight", (width,), f"{ours}ffn_norm.weight")

    def _moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        experts, hidden = moe.num_experts, moe.expert_width
        stack, each = (experts * hidden, width), (experts, hidden, width)
        yield Piece(f"{stored}router.layer.weight", (experts, width), f"{ours}router.weight")
        for name, start in (("w1", 0), ("v1", hidden)):
            at = (slice(None), slice(start, start + hidden))
            yield Piece(
                f"{stored}experts.mlp.{name}",
                stack,
                f"{ours}experts.w_in",
                at=at,
                stored_view=each,
            )
        yield Piece(
            f"{stored}experts.mlp.w2",
            stack,
            f"{ours}experts.w_out",
            stored_view=each,
            transposed=True,
        )
