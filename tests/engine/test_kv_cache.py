"""The engine's cache: how large it will be, before it is; and what is refused."""

import math

import pytest
from tests.engine.tiny_families import build

from mixtura.engine.kv_cache import CachePlan, KVKind
from mixtura.errors import ConfigError
from mixtura.memory import free_bytes, in_words


@pytest.mark.parametrize(
    ("family", "kind", "bytes_of_position"),
    [
        # 2 layers, 2 heads, keys and values of 6.
        ("llama", "fp32", 2 * 2 * (6 + 6) * 4),
        ("llama", "bf16", 2 * 2 * (6 + 6) * 2),
        # A scale of 4 bytes for each of the two vectors.
        ("llama", "int8", 2 * 2 * (6 + 4 + 6 + 4)),
        # One head of a latent of 8 and a turned key of 4; the values are that latent.
        ("deepseek_v3", "bf16", 2 * (8 + 4) * 2),
        ("deepseek_v3", "int8", 2 * (8 + 4 + 4)),
    ],
)
def test_its_size_is_known_before_it_is_allocated(
    family: str, kind: KVKind, bytes_of_position: int
) -> None:
    plan = CachePlan(build(family).config, slots=3, context=7, kind=kind)
    assert plan.bytes_of_position == bytes_of_position
    assert plan.bytes == 3 * 7 * bytes_of_position
    kept = {
        tensor.data_ptr(): tensor.nbytes
        for layer in plan.allocate().layers
        for tensor in (layer.keys, layer.values, layer.key_scales, layer.value_scales)
        # A latent's values are a view of its keys.
        if tensor is not None and (tensor is not layer.values or not layer.values_in_keys)
    }
    assert sum(kept.values()) == plan.bytes


def test_a_cache_that_memory_cannot_hold_is_refused() -> None:
    free = free_bytes()
    if free is None:
        pytest.skip("this system does not say how much memory is free")
    shape = build("llama").config
    # 48 positions of 96 bytes.
    slots = math.ceil(2 * free / (48 * 96))
    said = rf"a cache of {slots} x 48 positions in bf16 takes .* of memory are free; ask for a sh"
    with pytest.raises(ConfigError, match=said):
        CachePlan(shape, slots, 48).allocate()


@pytest.mark.parametrize(
    ("slots", "context", "said"),
    [
        (0, 8, "slots=0 must be 1 or more; each sequence takes one"),
        (1, 0, r"context=0 must lie in 1\.\.48, the model's own"),
        (1, 49, r"context=49 must lie in 1\.\.48, the model's own"),
    ],
)
def test_sizes_that_cannot_be_are_refused(slots: int, context: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CachePlan(build("llama").config, slots, context)


def test_free_memory_is_some() -> None:
    free = free_bytes()
    assert free is None or free > 0


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.50 kB"), (2_340_000, "2.34 MB")],
)
def test_bytes_in_words(size: int, words: str) -> None:
    assert in_words(size) == words
    assert in_words(7 * 10**12) == "7000.00 GB"
