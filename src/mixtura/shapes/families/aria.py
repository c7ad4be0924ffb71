"""Aria's text model: shared experts, and routed experts in stacks that are stored transposed."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.layout import ffn_pieces
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.moe import MoEShape


class AriaText(SparseLlama):
    """Every layer has an MoE, whose combine weights are a softmax over the k largest logits."""

    model_type = "aria_text"
    architecture = "AriaTextForCausalLM"
    count_key = "moe_num_experts"
    width_key = "intermediate_size"
    gate_name = "router"
    defaults = MappingProxyType(
        {
            **{key: value for key, value in SparseLlama.defaults.items() if key[:4] != "norm"},
            "moe_num_experts": 8,
            "moe_topk": 2,
            "moe_num_shared_experts": 2,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        stated = {"num_experts_per_tok": keys.integer("moe_topk"), "norm_topk_prob": True}
        tree = super().read({**config, **stated})
        shared = keys.integer("moe_num_shared_experts") * tree["moe"]["expert_width"]
        tree["moe"] |= {"shared_width": shared, "router": {"kind": "topk_softmax"}}
        return {**tree, "ffn_width": None}

    def write(self, decoder: Mapping[str, Any]) -> Tree:
        moe = decoder["moe"]
        shared, left = divmod(moe["shared_width"], moe["expert_width"])
        if left:
            raise ConfigError(
                f"moe.shared_width={moe['shared_width']} is no multiple of "
                f"expert_width={moe['expert_width']}, as a {self.model_type} config has it; save "
                "it as another family"
            )
        written = super().write({**decoder, "ffn_width": moe["expert_width"]})
        for key in ("norm_topk_prob", "num_experts_per_tok"):
            del written[key]
        return {**written, "moe_topk": moe["top_k"], "moe_num_shared_experts": shared}

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        experts, hidden = moe.num_experts, moe.expert_width
        yield Piece(f"{stored}router.weight", (experts, width), f"{ours}router.weight")
        for name, shape, part in (
            ("fc1", (experts, width, 2 * hidden), "w_in"),
            ("fc2", (experts, hidden, width), "w_out"),
        ):
            theirs = f"{stored}experts.{name}.weight"
            yield Piece(theirs, shape, f"{ours}experts.{part}", transposed=True)
        if moe.shared_width:
            name = f"{stored}shared_experts."
            yield from ffn_pieces(width, moe.shared_width, name, f"{ours}shared.")
