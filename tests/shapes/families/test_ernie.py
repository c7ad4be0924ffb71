"""ERNIE 4.5's MoE config and tensors."""

from typing import Any

import pytest
import torch

from mixtura.checkpoints.piece_views import taken
from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES

FAMILY = FAMILIES["ernie4_5_moe"]
# The release with 21B parameters.
CONFIG = {
    "model_type": "ernie4_5_moe",
    "hidden_size": 2560,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 12_288,
    "moe_intermediate_size": 1536,
    "moe_num_experts": 64,
    "moe_k": 6,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "vocab_size": 103_424,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000,
    "use_bias": False,
    "tie_word_embeddings": True,
}


def parsed(**changed: Any) -> DecoderConfig:
    return DecoderConfig.parse(FAMILY.read({**CONFIG, **changed}))


def test_counts_by_hand() -> None:
    # An expert 3 * 2560 * 1536 = 11,796,480; 27 layers of 66 of them and a router of 64 * 2560:
    # 21,025,751,040. One dense FFN 3 * 2560 * 12288 = 94,371,840. Attention 28 * 128 * 2560 +
    # 2560 * 2560 = 15,728,640 and two norms, in 28 layers: 440,545,280. Embedding 264,765,440.
    # 58 of 66 experts rest: 27 * 58 * 11,796,480 = 18,473,287,680.
    total = 21_025_751_040 + 94_371_840 + 440_545_280 + 264_765_440 + 2560
    assert parsed().total_parameters() == total
    assert parsed().active_parameters() == total - 18_473_287_680


@pytest.mark.parametrize(
    ("start", "end", "step", "layers"),
    [(1, -1, 1, range(1, 6)), (0, 5, 2, [1, 3, 5]), (2, 3, 1, [2, 3]), (0, 4, 3, [2])],
)
def test_placement_both_ways(start: int, end: int, step: int, layers: list[int]) -> None:
    found = parsed(
        num_hidden_layers=6,
        moe_layer_start_index=start,
        moe_layer_end_index=end,
        moe_layer_interval=step,
    )
    assert list(found.moe_shapes) == list(layers)
    again = DecoderConfig.parse(FAMILY.read(FAMILY.write(found.model_dump())))
    assert list(again.moe_shapes) == list(layers)


def test_neighbouring_pairs_come_apart() -> None:
    # Heads of 4 rows: stored 0 1 2 3, whose pairs are (0, 1) and (2, 3); ours 0 2 1 3. Values stay.
    shape = parsed(
        hidden_size=8, head_dim=4, num_attention_heads=2, num_key_value_heads=1, vocab_size=5
    )
    ours = torch.zeros(16, 8)
    start = 0
    stored = {}
    for name, rows in (("q", 8), ("k", 4), ("v", 4)):
        stored[f"model.layers.0.self_attn.{name}_proj.weight"] = (
            torch.arange(start, start + rows).float()[:, None].expand(rows, 8).contiguous()
        )
        start += rows
    for piece in FAMILY.pieces(shape):
        if piece.ours == "blocks.0.attention.qkv.weight":
            target, part = taken(ours, stored[piece.stored], piece)
            target.copy_(part)
    assert ours[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 13, 14, 15]


def test_biases_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"use_bias=True in a ernie4_5_moe model.*False"):
        parsed(use_bias=True)


def test_shared_experts_of_another_width_are_refused() -> None:
    config = parsed().model_dump()
    config["moe"]["shared_width"] = 100
    with pytest.raises(ConfigError, match=r"shared_width=100 is no multiple of expert_width=1536"):
        FAMILY.write(config)
