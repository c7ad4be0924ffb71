"""Hunyuan-A13B and Hunyuan 3 as their config.json have them."""

from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_of

# Of the published config what decides weights and function, for three layers of 32.
A13B: dict[str, Any] = {
    "model_type": "hunyuan_v1_moe",
    "hidden_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "moe_intermediate_size": [3072, 3072, 3072],
    "num_experts": 64,
    "num_shared_expert": [1, 1, 1],
    "moe_topk": [8, 8, 8],
    "use_qk_norm": True,
    "use_cla": False,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    "max_position_embeddings": 32768,
    "vocab_size": 128167,
    "tie_word_embeddings": True,
}
V3: dict[str, Any] = {
    **{key: A13B[key] for key in ("hidden_size", "num_attention_heads", "vocab_size")},
    "model_type": "hy_v3",
    "num_hidden_layers": 4,
    "intermediate_size": 13312,
    "moe_intermediate_size": 1536,
    "num_experts": 192,
    "max_position_embeddings": 131072,
}


def decoder_from(config: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.parse(family_of(config).read(config))


def test_alpha_raises_the_base() -> None:
    # 10,000 * 1000^(128 / 126).
    assert decoder_from(A13B).attention.rope_base == pytest.approx(11_158_839.9, rel=1e-6)
    plain = {**A13B, "rope_scaling": None}
    assert decoder_from(plain).attention.rope_base == 10_000


def test_hunyuan_3_by_its_keys() -> None:
    decoder = decoder_from(V3)
    assert decoder.moe is not None
    assert list(decoder.moe_shapes) == [1, 2, 3]
    assert decoder.moe.router.model_dump()["scale"] == 2.826
    assert (decoder.moe.top_k, decoder.moe.shared_width) == (8, 1536)


@pytest.mark.parametrize(
    "config", [A13B, {**A13B, "attention_bias": True}, V3, {**V3, "num_shared_experts": 2}]
)
def test_what_is_written_reads_the_same(config: dict[str, Any]) -> None:
    decoder, family = decoder_from(config), family_of(config)
    written = family.write(decoder.model_dump())
    assert decoder_from(written) == decoder
    assert list(family_of(written).pieces(decoder)) == list(family.pieces(decoder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**A13B, "moe_topk": [8, 8, 4]}, r"moe_topk=\[8, 8, 4\] should be one number"),
        ({**A13B, "moe_intermediate_size": 1536}, "moe_intermediate_size=1536 should be 3072"),
        ({**A13B, "num_shared_expert": 2}, "num_shared_expert=2 should be 1"),
        ({**A13B, "use_cla": True}, "use_cla=True"),
        ({**A13B, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({**V3, "first_k_dense_replace": 2}, "first_k_dense_replace=2"),
    ],
)
def test_what_the_decoder_lacks_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decoder_from(config)
