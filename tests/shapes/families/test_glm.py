"""GLM, Solar Open, dots.llm1 and MiniMax M2 as their config.json have them."""

from typing import Any

import pytest

from mixtura.checkpoints.hf.model_config import hf_config
from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes.families import FAMILIES, family_of
from mixtura.shapes.families.rotary import read_rotated, write_rotated
from mixtura.shapes.known import known_config

AIR = {**known_config("glm-4.5-air"), "num_hidden_layers": 3}
FLASH = {**known_config("glm-4.7-flash"), "num_hidden_layers": 3}
M2 = {**known_config("minimax-m2"), "num_hidden_layers": 3}
# Of the published config what decides weights and function, for three layers of 62.
DOTS: dict[str, Any] = {
    "model_type": "dots1",
    "hidden_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "noaux_tc",
    "sliding_window": None,
    "max_position_embeddings": 32768,
    "vocab_size": 152064,
}
SOLAR = {
    **{key: value for key, value in AIR.items() if key != "intermediate_size"},
    "model_type": "solar_open",
    "first_k_dense_replace": 0,
    "partial_rotary_factor": 1.0,
}


def decoder_from(config: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.parse(family_of(config).read(config))


@pytest.mark.parametrize(
    "config",
    [
        AIR,
        {**AIR, "partial_rotary_factor": 0.3, "head_dim": 80, "use_qk_norm": True, "n_group": 8},
        {**AIR, "partial_rotary_factor": 1, "first_k_dense_replace": 0},
        FLASH,
        {**FLASH, "mlp_layer_types": ["sparse", "dense", "sparse"], "rope_interleave": False},
        M2,
        {**M2, "rotary_dim": 128, "tie_word_embeddings": True},
        DOTS,
        {**DOTS, "sliding_window": 5, "max_window_layers": 1},
        SOLAR,
    ],
)
def test_what_is_written_reads_the_same(config: dict[str, Any]) -> None:
    decoder, family = decoder_from(config), family_of(config)
    written = family.write(decoder.model_dump())
    assert decoder_from(written) == decoder
    assert list(family_of(written).pieces(decoder)) == list(family.pieces(decoder))


def test_rotated_dims_by_their_keys() -> None:
    def rotated(config: dict[str, Any]) -> int:
        return decoder_from(config).attention.rope_dim

    # Half of 128, stated or not; RoPE's own section is read before the outer key.
    assert rotated(AIR) == 64
    assert rotated({key: AIR[key] for key in AIR if key != "partial_rotary_factor"}) == 64
    assert rotated({**AIR, "rope_parameters": {"partial_rotary_factor": 0.25}}) == 32
    assert rotated({**AIR, "partial_rotary_factor": 1}) == 128
    assert rotated(M2) == 64
    assert rotated({key: M2[key] for key in M2 if key != "rotary_dim"}) == 128
    assert rotated({**M2, "partial_rotary_factor": 0.25}) == 32
    assert rotated(SOLAR) == rotated(DOTS) == 128


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**AIR, "partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5 must lie above 0"),
        # 128 * 0.1 = 12.8 gives 12 dims; 128 * 0.04 = 5.12 gives 5, which are no pairs.
        ({**AIR, "partial_rotary_factor": 0.04}, "rotated_dim=5 must be even"),
        ({**AIR, "scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({**FLASH, "first_k_dense_replace": 2}, "first_k_dense_replace=2 in a glm4_moe_lite"),
        ({**FLASH, "mlp_layer_types": ["dense"]}, "1 entries where num_hidden_layers is 3"),
        ({**FLASH, "mlp_layer_types": ["dense", "moe", "sparse"]}, "mlp_layer_types has 'moe'"),
        ({**FLASH, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({**M2, "use_qk_norm": False}, "use_qk_norm=False"),
        ({**M2, "shared_intermediate_size": 1536}, "shared_intermediate_size=1536"),
        ({**DOTS, "scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({**SOLAR, "first_k_dense_replace": 1}, "first_k_dense_replace=1"),
        ({**SOLAR, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_what_the_decoder_lacks_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decoder_from(config)


@pytest.mark.parametrize(("rotated", "head_dim"), [(None, 7), (2, 3), (64, 128), (30, 44)])
def test_the_written_share_gives_the_dims_again(rotated: int | None, head_dim: int) -> None:
    # In floating point 44 * (30 / 44) lies under 30.
    share = write_rotated({"rotated_dim": rotated, "head_dim": head_dim})
    assert read_rotated({"partial_rotary_factor": share}, "x", head_dim, 1.0) == rotated


def test_a_family_that_rotates_whole_heads_refuses_to_write_others() -> None:
    with pytest.raises(ConfigError, match=r"attention.rotated_dim=64 has no place in a solar_open"):
        hf_config(decoder_from(AIR), FAMILIES["solar_open"])
