"""DeepSeek's experts, which other families have too: shared experts and many routed experts."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.families.family import Piece, shape_of
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.families.layout import ffn_pieces
from mixtura.shapes.families.mixtral import SparseLlama
from mixtura.shapes.moe import MoEShape


class SharedExperts(SparseLlama):
    """The first layers are dense, and the others have MoEs.

    The `n_shared_experts` shared experts of an MoE compute every token. A subclass reads and
    writes its router.
    """

    count_key = "n_routed_experts"
    shared_key: ClassVar[str] = "n_shared_experts"
    shared_name: ClassVar[str] = "shared_experts"
    defaults = MappingProxyType(
        {
            **SparseLlama.defaults,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "n_group": None,
            "topk_group": None,
            "routed_scaling_factor": 1.0,
        }
    )

    def read(self, config: Mapping[str, Any]) -> Tree:
        keys = self.keys(config)
        tree = super().read(config)
        shared = keys.integer(self.shared_key, 0) * tree["moe"]["expert_width"]
        tree["moe"] |= {"shared_width": shared, "router": self.read_router(keys)}
        return tree

    @abstractmethod
    def read_router(self, keys: Keys) -> Tree: ...

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
            **self.write_placement(decoder),
            **self.write_router(moe["router"]),
            self.shared_key: shared,
        }

    def write_placement(self, decoder: Mapping[str, Any]) -> Tree:
        """The config keys that `read_placement` reads.

        `moe_layer_freq` is the distance between the first two MoE layers.
        """
        placement = decoder["moe"]["placement"]
        if placement["only"] is None and placement["every"] == 1:
            return {"first_k_dense_replace": placement["first_dense"], "moe_layer_freq": 1}
        sparse = list(shape_of(decoder).moe_shapes)
        step = sparse[1] - sparse[0] if len(sparse) > 1 else 1
        return {"first_k_dense_replace": sparse[0], "moe_layer_freq": step}

    def write_router(self, router: Mapping[str, Any]) -> Tree:
        """The config keys of expert groups and of the factor of all combine weights."""
        return {
            "n_group": router.get("groups", 1),
            "topk_group": router.get("groups_kept", 1),
            "routed_scaling_factor": router.get("scale", 1.0),
        }

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        if moe.shared_width:
            name = f"{stored}{self.shared_name}."
            yield from ffn_pieces(width, moe.shared_width, name, f"{ours}shared.")


class SigmoidExperts(SharedExperts):
    """The router of DeepSeek-V3: scores are sigmoids, and experts are chosen with a choosing bias.

    A group of experts is ranked by the sum of the two highest scores (with bias) in it.
    """

    in_fp32 = frozenset({"gates", "weights"})
    defaults = MappingProxyType(
        {
            **SharedExperts.defaults,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
        }
    )
    group_top: ClassVar[int] = 2
    bias_name: ClassVar[str] = "gate.e_score_correction_bias"
    scoring_names: ClassVar[tuple[str, ...]] = ("sigmoid",)

    def __init__(self, *, drafting: range = range(0)) -> None:
        """`drafting`: numbers of layers that serve only multi-token prediction.

        These layers follow the model's last layer and are not read.
        """
        if drafting:
            numbers = "|".join(map(str, drafting))
            word = "multi-token prediction, which drafts tokens beyond the next"
            self.left_out = {**self.left_out, rf"model\.layers\.({numbers})\..*": word}

    def of_config(self, config: Mapping[str, Any]) -> Self:
        return type(self)(drafting=self.drafting_layers(config))

    def drafting_layers(self, config: Mapping[str, Any]) -> range:
        """The numbers of the layers that serve only multi-token prediction."""
        if not self.drafting_keys:
            return range(0)
        keys = self.keys(config)
        first = keys.integer("num_hidden_layers")
        return range(first, first + keys.integer(keys.first(*self.drafting_keys), 0))

    def read_router(self, keys: Keys) -> Tree:
        keys.expect("scoring_func", *self.scoring_names)
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

    def write_router(self, router: Mapping[str, Any]) -> Tree:
        written = super().write_router(router)
        return {**written, "topk_method": "noaux_tc", "scoring_func": self.scoring_names[0]}

    def moe_pieces(self, width: int, moe: MoEShape, stored: str, ours: str) -> Iterator[Piece]:
        yield from super().moe_pieces(width, moe, stored, ours)
        yield Piece(f"{stored}{self.bias_name}", (moe.num_experts,), f"{ours}router.bias")
