"""What the ledger says of the packed file, beside what the built model saves."""

from typing import Any

import pytest
from tests.engine.tiny_families import BASE, FAMILIES, MOE

from mixtura.models import DecoderConfig
from mixtura.models.blueprint import without_weights
from mixtura.packed.packable import plan
from mixtura.shapes.families import family_of
from mixtura.shapes.known import known_config, known_shape
from mixtura.shapes.storage import planned_of

ROUTERS: dict[str, dict[str, Any]] = {
    "choosing_bias": {"kind": "topk_softmax", "choosing_bias": True},
    "expert_threshold": {"kind": "expert_threshold"},
    "hierarchical": {
        "kind": "hierarchical",
        "groups": 2,
        "outer": {"kind": "sigmoid_topk"},
        "inner": {"kind": "softmax_topk", "choosing_bias": True},
    },
    "reinforce": {"kind": "reinforce"},
}
# One of each family whose published config is here.
PUBLISHED = [
    "dbrx",
    "deepseek-v2",
    "deepseek-v3",
    "gpt-oss-20b",
    "granite-3.0-1b-a400m",
    "llama-3.1-8b",
    "mixtral-8x7b",
    "olmoe-1b-7b",
    "phi-3.5-moe",
    "qwen1.5-moe-a2.7b",
    "qwen3-0.6b",
    "qwen3-30b-a3b",
]
TREES = {
    **FAMILIES,
    **{
        name: {"moe": {**MOE, "top_k": 1 if name == "reinforce" else 2, "router": router}}
        for name, router in ROUTERS.items()
    },
}


@pytest.mark.parametrize("name", TREES)
def test_the_ledger_plans_what_the_built_model_saves(name: str) -> None:
    config = DecoderConfig.parse({**BASE, **TREES[name], "width": 32})
    with without_weights():
        built = config.build()
    assert planned_of(config) == plan(built)
    buffers = {name: str(value.dtype) for name, value in built.named_buffers()}
    assert {one.name: f"torch.{one.dtype}" for one in config.buffers()} == buffers


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_shape_has_the_tensors_of_the_decoder(name: str) -> None:
    published = known_config(name)
    config = DecoderConfig.parse(family_of(published).read(published))
    assert list(known_shape(name).tensors()) == list(config.tensors())
