"""Layers with different numbers of experts: which, how many weights, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.config import read_yaml
from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig
from mixtura.moe import MoE, MoEConfig
from mixtura.shapes import DecoderShape, MoEShape, PyramidStep, dense_twin

SHAPES = Path(__file__).parents[2] / "recipes" / "shapes"

MOE: dict[str, Any] = {
    "num_experts": 2,
    "top_k": 2,
    "expert_width": 3,
    "pyramid": [{"from_layer": 2, "num_experts": 4}, {"from_layer": 3, "num_experts": 5}],
}
TREE: dict[str, Any] = {
    "layers": 5,
    "width": 4,
    "vocabulary": 10,
    "context": 8,
    "attention": {"heads": 2, "kv_heads": 1, "head_dim": 2},
    "moe": MOE,
}


def test_each_layer_has_the_experts_of_the_last_step_before_it() -> None:
    shape = DecoderShape.parse(TREE)
    assert [moe.num_experts for moe in shape.moe_shapes.values()] == [2, 2, 4, 5, 5]
    third = shape.moe_of(2)
    assert third == MoEShape(num_experts=4, top_k=2, expert_width=3)
    assert shape.moe_of(4) == MoEShape(num_experts=5, top_k=2, expert_width=3)


def test_a_dense_layer_has_none() -> None:
    sparse = {
        **MOE,
        "placement": {"only": [1, 3]},
        "pyramid": [{"from_layer": 2, "num_experts": 4}],
    }
    shape = DecoderShape.parse({**TREE, "ffn_width": 6, "moe": sparse})
    assert shape.moe_of(2) is None
    assert {layer: moe.num_experts for layer, moe in shape.moe_shapes.items()} == {1: 2, 3: 4}


def test_counts_by_hand() -> None:
    # A router row of 4 and an expert of 3 * 4 * 3 = 36, 40 for each of 2 + 2 + 4 + 5 + 5 = 18: 720.
    # Of each layer a token uses its router and 2 experts: 18 * 4 + 5 * 2 * 36 = 432.
    shape, dense = (
        DecoderShape.parse(TREE),
        DecoderShape.parse({**TREE, "moe": None, "ffn_width": 1}),
    )
    # One unit of a dense FFN has 3 * 4 = 12 weights, in five layers 60.
    rest = dense.total_parameters() - 60
    assert shape.total_parameters() - rest == 720
    assert shape.active_parameters() - rest == 432
    # The twin's share of a layer is 432 / 5 = 86.4, over 12 a unit 7.2: 7.
    assert dense_twin(shape, multiple=1).ffn_width == 7


def test_the_built_decoder_is_the_ledgers() -> None:
    config = DecoderConfig.parse(TREE)
    decoder = Decoder(config)
    built = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    assert {weight.name: weight.shape for weight in config.weights()} == built
    experts = [m.config.num_experts for m in decoder.modules() if isinstance(m, MoE)]
    assert experts == [2, 2, 4, 5, 5]
    output = decoder(torch.randint(10, (2, 8)))
    assert [moe.routing.num_experts for moe in output.moe] == experts
    assert output.balance_loss.isfinite()


def test_what_a_layer_keeps_of_its_config() -> None:
    moe = {**MOE, "router": {"kind": "sigmoid_topk"}, "capacity": {"policy": "drop", "factor": 2.0}}
    config = DecoderConfig.parse({**TREE, "activation": "relu", "moe": moe})
    own = config.moe_of(4)
    assert own is not None
    assert config.moe is not None
    kept = {"num_experts", "pyramid"}
    assert own.model_dump(exclude=kept) == config.moe.model_dump(exclude=kept)
    assert (own.num_experts, own.pyramid, own.activation) == (5, (), "relu")
    assert DecoderConfig.parse(config.model_dump()) == config


@pytest.mark.parametrize(
    ("moe", "words"),
    [
        # Deeper, and more: neither may stay or fall.
        (
            {"pyramid": [{"from_layer": 2, "num_experts": 2}]},
            ["from_layer=2, num_experts=2", "more than 2 experts", "first to the deepest"],
        ),
        (
            {"pyramid": [{"from_layer": 3, "num_experts": 4}, {"from_layer": 3, "num_experts": 5}]},
            ["from_layer=3, num_experts=5", "deeper than layer 3"],
        ),
        ({"pyramid": [{"from_layer": 0, "num_experts": 4}]}, ["from_layer", "1", "given 0"]),
        ({"pyramid": [{"from_layer": 5, "num_experts": 4}]}, ["from_layer=5", "layers=5"]),
        (
            {"placement": {"only": [0, 1, 4]}},
            ["from_layer=2", "governs no MoE layer", "move the step or leave it out"],
        ),
        ({"top_k": 3}, ["top_k=3", "1..num_experts=2", "lower top_k"]),
    ],
)
def test_a_bad_pyramid_names_value_bound_and_remedy(moe: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        DecoderShape.parse({**TREE, "ffn_width": 6, "moe": {**MOE, **moe}})
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_step_is_held_to_all_that_its_layer_is() -> None:
    # Two groups divide 4 experts, and not the 5 of the second step.
    flat = {"kind": "softmax_topk"}
    router = {"kind": "hierarchical", "groups": 2, "outer_top_k": 1, "outer": {"kind": "switch"},
              "inner": flat}  # fmt: skip
    with pytest.raises(ConfigError, match=r"from_layer=3: num_experts=5 .*router.groups=2"):
        DecoderConfig.parse({**TREE, "moe": {**MOE, "num_experts": 2, "top_k": 2, "router": router,
                             "pyramid": [{"from_layer": 2, "num_experts": 4},
                                         {"from_layer": 3, "num_experts": 5}]}})  # fmt: skip


def test_a_single_layer_has_no_pyramid() -> None:
    config = MoEConfig.parse(MOE)
    with pytest.raises(ConfigError, match=r"pyramid of 2 steps.*config.of_layer"):
        MoE(4, config)
    assert MoE(4, config.of_layer(2)).config.num_experts == 4


def test_steps_are_configs_too() -> None:
    step = PyramidStep(from_layer=1, num_experts=8)
    assert MoEShape(num_experts=4, top_k=1, expert_width=2, pyramid=(step,)).of_layer(7) == (
        MoEShape(num_experts=8, top_k=1, expert_width=2)
    )


@pytest.mark.parametrize(
    ("name", "experts", "published"),
    [
        # experts * 8h^2 alone: 1536 * 8 * 1024^2 = 12.9, 1536 * 8 * 2048^2 = 51.5,
        # (10 * 32 + 2 * 64) * 8 * 1024^2 = 3.8, (10 * 64 + 2 * 128) * 8 * 2048^2 = 30.1 billion.
        ("deepspeed-moe-350m-128", 12 * 128, 13),
        ("deepspeed-moe-1.3b-128", 12 * 128, 52),
        ("deepspeed-pr-moe-350m-32-64", 10 * 32 + 2 * 64, 4),
        ("deepspeed-pr-moe-1.3b-64-128", 10 * 64 + 2 * 128, 31),
    ],
)
def test_deepspeed_moes_sizes(name: str, experts: int, published: int) -> None:
    shape = DecoderShape.parse(read_yaml(SHAPES / f"{name}.yaml"))
    assert sum(moe.num_experts for moe in shape.moe_shapes.values()) == experts
    assert len(shape.moe_shapes) == 12
    of_experts = sum(w.parameters for w in shape.weights() if w.role == "expert")
    assert of_experts == experts * 8 * shape.width**2
    assert round(shape.total_parameters() / 1e9) == published
