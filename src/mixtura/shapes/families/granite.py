"""Granite MoE: Llama's block with constant multipliers, and stacked experts."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.decoder import DecoderShape
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.llama import SLIDING
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.families.windows import WindowsByType
from mixtura.shapes.moe import MoEShape


class GraniteMoe(SparseLlama):
    """Combine weights are a softmax over the k largest logits.

    Constant factors scale the embedding, the attention scores, the outputs of attention and MoE,
    and the logits.
    """

    model_type = "granitemoe"
    architecture = "GraniteMoeForCausalLM"
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
        }
    )
    moe_name = "block_sparse_moe"
    width_key = "intermediate_size"

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), super().read(config)
        tree["moe"] |= {"router": {"kind": "topk_softmax"}}
        return {**tree, "ffn_width": None, **self.read_multipliers(keys)}

    def read_multipliers(self, keys: Keys) -> Tree:
        multipliers = {
            "embedding": keys.number("embedding_multiplier"),
            "residual": keys.number("residual_multiplier"),
            "logits": 1 / keys.positive("logits_scaling"),
        }
        return {"multipliers": multipliers}

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        scale = self.keys(config).number("attention_multiplier")
        return {**super().read_attention(config), "scale": scale}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        written = super().write({**decoder, "ffn_width": decoder["moe"]["expert_width"]})
        del written["norm_topk_prob"]
        return {**written, **self.write_multipliers(decoder["multipliers"])}

    def write_multipliers(self, multipliers: Mapping[str, Any]) -> Tree:
        return {
            "embedding_multiplier": multipliers["embedding"],
            "residual_multiplier": multipliers["residual"],
            "logits_scaling": _inverse(multipliers["logits"]),
        }

    def write_attention(self, attention: Mapping[str, Any]) -> Tree:
        scale = attention["scale"] or attention["head_dim"] ** -0.5
        return {**super().write_attention(attention), "attention_multiplier": scale}

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        experts, hidden = moe.num_experts, moe.expert_width
        yield Piece(f"{stored}router.layer.weight", (experts, width), f"{ours}router.weight")
        both = (experts, 2 * hidden, width)
        yield Piece(f"{stored}input_linear.weight", both, f"{ours}experts.w_in")
        down = (experts, width, hidden)
        yield Piece(f"{stored}output_linear.weight", down, f"{ours}experts.w_out")


class GraniteMoeShared(GraniteMoe):
    """Granite's MoE with a shared expert."""

    model_type = "granitemoeshared"
    architecture = "GraniteMoeSharedForCausalLM"
    defaults = MappingProxyType({**GraniteMoe.defaults, "shared_intermediate_size": 0})

    def read(self, config: Mapping[str, Any]) -> Tree:
        tree = super().read(config)
        width = self.keys(config).integer("shared_intermediate_size")
        tree["moe"] |= {"shared_width": width}
        return tree

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        width = decoder["moe"]["shared_width"]
        return {**super().write(decoder), "shared_intermediate_size": width}

    def ffn_pieces(
        self, shape: DecoderShape, layer: int, stored: str, ours: str
    ) -> Iterator[Piece]:
        yield from super().ffn_pieces(shape, layer, stored, ours)
        moe = shape.moe_of(layer)
        assert moe is not None, "every layer of this family is an MoE"
        if moe.shared_width:
            width, hidden, name = shape.width, moe.shared_width, f"{stored}shared_mlp."
            both = (2 * hidden, width)
            yield Piece(f"{name}input_linear.weight", both, f"{ours}shared.w_in")
            yield Piece(f"{name}output_linear.weight", (width, hidden), f"{ours}shared.w_out")


class GraniteMoeSwa(GraniteMoeShared, WindowsByType):
    """Granite's MoE with windows and sinks; `layer_rope_theta` lists the layers' RoPE bases.

    A layer with base 0 is not rotated. All rotated layers with a window must have one base, and all
    rotated layers without a window must have one base.
    """

    model_type = "granitemoe_swa"
    architecture = "GraniteMoeSWAForCausalLM"
    defaults = MappingProxyType(
        {
            **GraniteMoeShared.defaults,
            "sliding_window": 128,
            "layer_types": None,
            "layer_rope_theta": None,
        }
    )

    def default_types(self, keys: Keys) -> list[str]:
        layers = range(keys.integer("num_hidden_layers"))
        return [SLIDING if layer % 4 else "full_attention" for layer in layers]

    def read_attention(self, config: Mapping[str, Any]) -> Tree:
        keys, tree = self.keys(config), {**super().read_attention(config), "sinks": True}
        if keys.given("layer_rope_theta") is None:
            return tree
        bases, layers = keys.numbers("layer_rope_theta"), keys.integer("num_hidden_layers")
        windows = set(tree["local"]["layers"]) if tree["local"] else set()
        full = {base for layer, base in enumerate(bases) if layer not in windows} - {0.0}
        local = {base for layer, base in enumerate(bases) if layer in windows} - {0.0}
        base = next(iter(full or local), tree["rope_base"])
        own = next(iter(local - {base}), None)
        many = len(bases) != layers or len(full) > 1 or len(local) > 1
        if many or (own and tree["rope_scaling"]):
            raise ConfigError(
                f"config.json: layer_rope_theta={bases!r:.60} in a {self.model_type} model; Mixtura"
                " runs it with one base in layers with a window and one in all others, and with "
                "two bases only without scaling"
            )
        unrotated = [layer for layer in range(layers) if not bases[layer]]
        found = {**tree, "rope_base": base, "unrotated": unrotated}
        return found if own is None else {**found, "local": {**tree["local"], "rope_base": own}}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        attention = decoder["attention"]
        local, unrotated = attention["local"] or {"layers": ()}, attention["unrotated"]

        def base_of(layer: int) -> float:
            own = local["rope_base"] if layer in local["layers"] else None
            return own or attention["rope_base"]

        layers = range(decoder["layers"])
        bases = [0 if layer in unrotated else base_of(layer) for layer in layers]
        return {**super().write(decoder), "layer_rope_theta": bases}

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        experts, hidden = moe.num_experts, moe.expert_width
        yield Piece(f"{stored}router.weight", (experts, width), f"{ours}router.weight")
        both = (experts, 2 * hidden, width)
        yield Piece(f"{stored}experts.gate_up_proj", both, f"{ours}experts.w_in")
        down = (experts, width, hidden)
        yield Piece(f"{stored}experts.down_proj", down, f"{ours}experts.w_out")


def _inverse(value: float) -> float:
    """1 / value, rounded to 12 digits if the rounded number's inverse is `value`.

    The result is then 6 instead of 6.000000000000001, for example.
    """
    short = float(f"{1 / value:.12g}")
    return short if 1 / short == value else 1 / value
