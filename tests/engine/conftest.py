"""Small decoders over bytes, with random weights."""

from collections.abc import Callable

import pytest
import torch
from tests.engine.both_steps import OTHERS, Pack, with_choosing_biases
from tests.engine.packed_families import packed
from tests.engine.tiny_families import BASE, FAMILIES, built

from mixtura.models import Decoder, DecoderConfig

Build = Callable[[str], Decoder]

TINY = {
    "layers": 2,
    "width": 16,
    "vocabulary": 257,
    "context": 48,
    "attention": {"heads": 4, "kv_heads": 2, "head_dim": 4},
}
EXPERTS = {"num_experts": 4, "top_k": 2, "expert_width": 8}
MODELS = {
    "dense": {"ffn_width": 24},
    "moe": {"moe": EXPERTS},
    "dropping": {"moe": {**EXPERTS, "capacity": {"policy": "drop", "factor": 0.25}}},
    "half_and_half": {"ffn_width": 24, "moe": {**EXPERTS, "placement": {"every": 2}}},
}


@pytest.fixture
def build() -> Build:
    """A decoder by name, with the same weights each time, and in training mode like a new one."""

    def build(name: str) -> Decoder:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return Decoder(DecoderConfig.parse({**TINY, **MODELS[name]}))

    return build


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A tiny decoder in 8 bits."""
    made: dict[str, Decoder] = {}

    def pack(name: str) -> Decoder:
        if name not in made:
            tree = {**BASE, **FAMILIES.get(name, {}), **OTHERS.get(name, {})}
            decoder = with_choosing_biases(built(tree, width=32))
            made[name] = packed(decoder, tmp_path_factory.mktemp("packed"))
        return made[name]

    return pack
