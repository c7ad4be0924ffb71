"""The bytes of groups, tiles, experts and files, by sums that a reader can redo; without torch."""

import subprocess
import sys

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes import DecoderShape
from mixtura.shapes.storage import (
    Placed,
    Planned,
    block_bytes,
    data_bytes,
    expert_bytes,
    group_bytes,
    packed_layout,
    planned_of,
    tiled_bytes,
)

SHAPE = DecoderShape.parse(
    {
        "layers": 1,
        "width": 32,
        "vocabulary": 40,
        "context": 8,
        "attention": {"heads": 1, "kv_heads": 1, "head_dim": 32, "norm": "head", "sinks": True},
        "moe": {
            "num_experts": 3,
            "top_k": 1,
            "expert_width": 24,
            "router": {"kind": "sigmoid_topk"},
        },
        "tied_head": True,
    }
)


def test_groups_and_blocks() -> None:
    # 32 weights of 4 bits are 16 bytes, of 8 bits 32; a scale is 2 more.
    assert (group_bytes(4), group_bytes(8)) == (18, 34)
    # 32 channels of 64 inputs are 64 groups.
    assert (block_bytes(4), block_bytes(8)) == (64 * 18, 64 * 34)


def test_tiles_are_whole_units_and_blocks() -> None:
    assert tiled_bytes(32, 64, 4) == 1152
    assert tiled_bytes(33, 65, 4) == 2 * 2 * 1152
    assert tiled_bytes(1, 1, 8) == 2176


def test_an_expert_ends_with_its_page() -> None:
    # F of 24 is padded to 32 rows of the gate and 32 of up: 2 units of 1152. Then 1152 of w_out.
    assert expert_bytes(32, 24, 4, gated=True) == 4096
    # Without a gate 24 rows are one unit. 2 * 2176 = 4352 take a second page.
    assert expert_bytes(32, 24, 8, gated=False) == 8192


def test_a_layout_byte_by_byte() -> None:
    layout = packed_layout(SHAPE, lambda one: one.bits(4, 8), lambda _: "float32")
    assert [(one.name, one.format, one.offset, one.bytes) for one in layout] == [
        ("blocks.0.attention_norm.weight", "float32", 0, 128),
        # One head of 4 bytes, then the next multiple of 64.
        ("blocks.0.attention.sinks", "float32", 128, 4),
        # Queries, keys and values: 96 rows are 3 units.
        ("blocks.0.attention.qkv.weight", "tiles4", 192, 3456),
        ("blocks.0.attention.out.weight", "tiles4", 3648, 1152),
        ("blocks.0.attention.q_norm.weight", "float32", 4800, 128),
        ("blocks.0.attention.k_norm.weight", "float32", 4928, 128),
        ("blocks.0.ffn_norm.weight", "float32", 5056, 128),
        ("blocks.0.ffn.router.weight", "float32", 5184, 384),
        ("blocks.0.ffn.router.bias", "float32", 5568, 12),
        # Three experts of a page each, from the next page on.
        ("blocks.0.ffn.experts", "experts4", 8192, 3 * 4096),
        ("norm.weight", "float32", 20480, 128),
        # 40 rows are 2 units.
        ("head.weight", "tiles8", 20608, 4352),
    ]
    assert data_bytes(layout) == 20608 + 4352


def test_a_buffer_keeps_its_dtype_beside_parameters_of_another() -> None:
    layout = packed_layout(SHAPE, lambda _: 4, lambda _: "bfloat16")
    formats = {one.name: one.format for one in layout}
    assert formats["blocks.0.ffn.router.weight"] == "bfloat16"
    assert formats["blocks.0.ffn.router.bias"] == "float32"


def test_a_layout_of_no_tensor_takes_no_byte() -> None:
    assert data_bytes(()) == 0


def test_experts_have_a_digest_each() -> None:
    assert Placed.behind(0, "experts", "experts4", (3, 48, 32, 24)).digests == 3
    assert Placed.behind(0, "head.weight", "tiles4", (40, 32)).digests == 1


def test_latent_attentions_way_up_stays_plain() -> None:
    latent = {"kind": "latent", "heads": 2, "kv_rank": 8, "nope_dim": 4, "turning_dim": 4}
    tree = SHAPE.model_dump() | {"attention": {**latent, "value_dim": 4, "query_rank": 16}}
    planned = {one.name: one for one in planned_of(DecoderShape.parse(tree))}
    assert planned["blocks.0.attention.query_down.weight"].kind == "tiles"
    assert planned["blocks.0.attention.kv_up.weight"] == Planned(
        "blocks.0.attention.kv_up.weight", "plain", (16, 8)
    )


def test_a_width_that_groups_do_not_divide_is_refused() -> None:
    odd = DecoderShape.parse({**SHAPE.model_dump(), "width": 48})
    with pytest.raises(ConfigError, match=r"blocks\.0\.ffn\.experts: a model of width 48 cannot"):
        planned_of(odd)


def test_every_byte_is_known_where_torch_cannot_be_imported() -> None:
    code = """
import sys
sys.modules["torch"] = None
from mixtura.shapes.known import known_shape
from mixtura.shapes.storage import bytes_of_cache, data_bytes, packed_layout
shape = known_shape("deepseek-v3")
print(data_bytes(packed_layout(shape, lambda _: 4, lambda _: "bfloat16")))
print(bytes_of_cache(shape, 1, 4096, "bf16"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packed, cache = map(int, done.stdout.split())
    # 671 billion weights at 4.5 bits; latent attention's way up stays in bf16, and so adds to it.
    assert 671e9 * 4.5 / 8 < packed < 1.01 * 671e9 * 4.5 / 8
    # 61 layers of a latent of 512 and a key of 64.
    assert cache == 4096 * 61 * (512 + 64) * 2
