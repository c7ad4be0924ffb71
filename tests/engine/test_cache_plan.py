"""The engine's cache: how large it will be, before it is; and what is refused."""

import math
from collections.abc import Iterable
from typing import get_args

import pytest
import torch
from tests.engine.tiny_families import build
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan, KVKind
from mixtura.engine.runner import Runner
from mixtura.errors import ConfigError
from mixtura.memory import free_bytes, in_words
from mixtura.models import State
from mixtura.shapes.storage import Plain, bytes_of_cache, bytes_of_text, plain_bytes_of_position

# Grouped, with a window and sinks in one of its layers, and latent.
KINDS_OF_ATTENTION = ["llama", "gpt_oss", "deepseek_v3"]


def memory_of(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory behind them, each piece once."""
    pieces = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({piece.data_ptr(): piece.nbytes() for piece in pieces}.values())


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
        for layer in (each.kv for each in plan.allocate().kv_layers)
        for tensor in (layer.keys, layer.values, layer.key_scales, layer.value_scales)
        # A latent's values are a view of its keys.
        if tensor is not None and (tensor is not layer.values or not layer.values_in_keys)
    }
    assert sum(kept.values()) == plan.bytes


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", get_args(KVKind))
@pytest.mark.parametrize("family", KINDS_OF_ATTENTION)
def test_every_byte_of_the_engines_cache_is_counted(family: str, kind: KVKind, slots: int) -> None:
    decoder = build(family)
    state = Runner.of(decoder, slots, 7, kind).state
    layers = [layer.kv for layer in state.kv_layers]
    kept = [(one.keys, one.values, one.key_scales, one.value_scales) for one in layers]
    held = memory_of(tensor for layer in kept for tensor in layer)
    assert held == state.bytes == bytes_of_cache(decoder.config, slots, 7, kind)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", KINDS_OF_ATTENTION)
def test_every_byte_of_a_decoders_own_cache_is_counted(
    family: str, dtype: Plain, batch: int
) -> None:
    config = build(family).config
    state = State.empty(config, batch, 7, getattr(torch, dtype))
    held = memory_of(tensor for one in state.kv_layers for tensor in (one.kv.keys, one.kv.values))
    assert held == state.bytes == batch * 7 * plain_bytes_of_position(config, dtype)


def test_longrope_keeps_a_token_for_each_position() -> None:
    decoder = build("phimoe")
    state = State.empty(decoder.config, 3, 20)
    with torch.inference_mode():
        decoder(torch.zeros(3, 4, dtype=torch.int64), state=state)
    kept = [one for one in vars(state.texts).values() if isinstance(one, Tensor) and one.dim() == 2]
    # 8 bytes each.
    assert memory_of(kept) == 3 * 20 * bytes_of_text(decoder.config) == 3 * 20 * 8
    assert bytes_of_text(build("llama").config) == 0


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
