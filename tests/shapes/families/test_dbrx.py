"""DBRX: counts of the published model, its two bases, its norm, and what is refused."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes.families import family_named, shape_of

FAMILY = family_named("dbrx")
# As databricks/dbrx-base has it.
BASE: dict[str, Any] = {
    "model_type": "dbrx",
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
    "d_model": 6144,
    "ffn_config": {
        "ffn_hidden_size": 10752,
        "moe_jitter_eps": 0,
        "moe_loss_weight": 0.05,
        "moe_num_experts": 16,
        "moe_top_k": 4,
    },
    "max_seq_len": 32768,
    "n_heads": 48,
    "n_layers": 40,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}


def test_counts() -> None:
    shape = shape_of(FAMILY.read(BASE))
    weights = {weight.name: weight.parameters for weight in shape.weights()}
    # An expert: 3 * 6144 * 10752; a router: 16 * 6144; attention: (48 + 2 * 8) * 128 rows and
    # an output of 6144, 6144 wide.
    experts = weights["blocks.0.ffn.experts.w_in"] + weights["blocks.0.ffn.experts.w_out"]
    assert experts // 16 == 198_180_864
    assert weights["blocks.39.ffn.router.weight"] == 98_304
    attention = [n for name, n in weights.items() if name.startswith("blocks.7.attention.")]
    assert sum(attention) == 88_080_384
    assert shape.total_parameters() == 131_596_523_520
    assert shape.active_parameters("A") == 36_469_708_800
    assert shape.active_parameters("B") == 35_853_146_112


@pytest.mark.parametrize("beside", [None, {"rope_type": "default", "rope_theta": 10000.0}])
def test_the_base_is_the_one_of_the_attention(beside: dict[str, Any] | None) -> None:
    # transformers 5 reads dbrx-base's config and saves it with a base of 10,000 beside the true.
    assert FAMILY.read({**BASE, "rope_parameters": beside})["attention"]["rope_base"] == 500_000


def test_without_a_base_of_the_attention_the_other_counts() -> None:
    attention = {"kv_n_heads": 8}
    config = {**BASE, "attn_config": attention, "rope_parameters": {"rope_theta": 77.0}}
    assert FAMILY.read(config)["attention"]["rope_base"] == 77
    assert FAMILY.read(config)["attention"]["clip"] is None


def test_an_absent_norm_is_1_and_null_is_none() -> None:
    null = {**BASE["ffn_config"], "moe_normalize_expert_weights": None}
    assert FAMILY.read(BASE)["moe"]["router"]["norm"] == 1
    assert FAMILY.read({**BASE, "ffn_config": null})["moe"]["router"]["norm"] is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True in a dbrx model"),
        (
            {"ffn_config": {**BASE["ffn_config"], "ffn_act_fn": {"name": "gelu"}}},
            "ffn_config: ffn_act_fn: name='gelu' in a dbrx model",
        ),
        ({"ffn_config": None}, "missing key 'ffn_config'"),
        ({"attn_config": {"kv_n_heads": "8"}}, "attn_config: kv_n_heads='8'"),
    ],
)
def test_what_the_decoder_has_not_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FAMILY.read({**BASE, **config})


def test_a_dense_decoder_has_no_place() -> None:
    dense = {**shape_of(FAMILY.read(BASE)).model_dump(), "moe": None}
    with pytest.raises(ConfigError, match="and moe=null; save it as another family"):
        FAMILY.write(dense)
