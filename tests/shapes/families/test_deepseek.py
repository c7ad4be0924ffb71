"""DeepSeek-V2 and V3 as their config.json have them: counts, layouts, and what is refused."""

import re
from typing import Any

import pytest

from mixtura.errors import ConfigError
from mixtura.models import DecoderConfig
from mixtura.shapes import DecoderShape
from mixtura.shapes.families import FAMILIES, family_of, shape_of

# Of the published configs, what decides weights and function.
V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "ep_size": 1,
}
V2_LITE: dict[str, Any] = {
    **V3,
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "vocab_size": 102400,
    "rope_scaling": {**V3["rope_scaling"], "mscale": 0.707, "mscale_all_dim": 0.707},
}


def shape_from(config: dict[str, Any]) -> DecoderShape:
    return shape_of(family_of(config).read(config))


def decoder_from(config: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.parse(family_of(config).read(config))


def test_v3_counts_as_published() -> None:
    shape = shape_from(V3)
    # The published 671,026,419,200 less 58 layers' 256 biases, which choose and are no parameters.
    assert shape.total_parameters() == 671_026_419_200 - 58 * 256 == 671_026_404_352
    assert shape.active_parameters("A") == 37_552_282_624
    assert shape.active_parameters("B") == 36_625_603_584
    sizes = {weight.name: weight.parameters for weight in shape.weights()}
    # An expert: gate, up and down of 2048 x 7168.
    assert sizes["blocks.3.ffn.experts.w_in"] + sizes["blocks.3.ffn.experts.w_out"] == (
        256 * 44_040_192
    )
    assert sizes["blocks.3.ffn.router.weight"] == 1_835_008
    attention = [size for name, size in sizes.items() if name.startswith("blocks.60.attention.")]
    assert sum(attention) == 187_107_328


def test_v2_lite_counts_by_hand() -> None:
    # Attention: queries 2048 * 16 * 192 = 6,291,456; latent 2048 * 576 = 1,179,648 and its norm
    #   512; drawn 512 * 16 * 256 = 2,097,152; out 2048 * 2048 = 4,194,304: 13,763,072 a layer.
    # An expert 3 * 2048 * 1408 = 8,650,752; 64 and 2 shared 570,949,632; gate 64 * 2048 = 131,072.
    # The first FFN 3 * 2048 * 10944 = 67,239,936. Norms 2 * 2048 a layer, 2048 last.
    # Total 27 * (13,763,072 + 4,096) + 67,239,936 + 26 * 571,080,704 + 2 * 102400 * 2048 + 2048.
    total = 27 * 13_767_168 + 67_239_936 + 26 * 571_080_704 + 419_430_400 + 2048
    shape = shape_from(V2_LITE)
    assert shape.total_parameters() == total == 15_706_484_224
    # 58 of 64 experts rest: "2.4B active" counts without the embedding's 209,715,200.
    active = total - 26 * 58 * 8_650_752
    assert shape.active_parameters("A") == active
    assert shape.active_parameters("B") == active - 209_715_200 == 2_451_435_008


def test_yarn_scales_scores_by_its_size_squared() -> None:
    # Size 0.1 * 1.0 * ln 40 + 1 = 1.3688879; squared 1.8738542; over sqrt(128 + 64) = 13.8564065.
    # Both mscales are equal, so cosines and sines stay as they are.
    attention = decoder_from(V3).attention
    assert attention.scale == pytest.approx(1.8738542 / 13.8564065, rel=1e-6)
    assert attention.rope_scaling is not None
    assert attention.rope_scaling.model_dump()["amplitude"] == 1.0
    plain = {**V3, "rope_scaling": {**V3["rope_scaling"], "mscale_all_dim": 0}}
    assert decoder_from(plain).attention.scale is None


def test_stored_neighbours_come_half_a_head_apart() -> None:
    # One head of 2 still rows and 4 that turn: stored 0 1 | 2 3 4 5 with pairs (2, 3) and (4, 5);
    # ours 0 1 | 2 4 | 3 5, where pairs are rows 2 and 4, 3 and 5.
    tiny = {**V3, "num_attention_heads": 1, "num_key_value_heads": 1, "qk_nope_head_dim": 2}
    tiny |= {"qk_rope_head_dim": 4, "num_hidden_layers": 4}
    family = family_of(tiny)
    name = "blocks.0.attention.query.weight"
    pieces = [piece for piece in family.pieces(shape_from(tiny)) if piece.ours == name]
    order: dict[int, int] = {}
    for piece in pieces:
        assert piece.view == piece.stored_view == (1, 6, 1536)
        (_, at), (_, of) = piece.at, piece.of
        assert isinstance(at, slice)
        assert isinstance(of, slice)
        order |= dict(zip(range(6)[at], range(6)[of], strict=True))
    assert order == {0: 0, 1: 1, 2: 2, 3: 4, 4: 3, 5: 5}
    halves = family_of({**tiny, "rope_interleave": False})
    (whole,) = [piece for piece in halves.pieces(shape_from(tiny)) if piece.ours == name]
    assert not whole.at
    assert not whole.of


def test_routers_by_their_keys() -> None:
    moe = decoder_from(V3).moe
    assert moe is not None
    router = moe.router.model_dump()
    assert router == {
        "kind": "deepseek_v3",
        "groups": 8,
        "groups_kept": 4,
        "group_top": 2,
        "renormalise": True,
        "scale": 2.5,
    }
    one = decoder_from({**V3, "n_group": 1, "topk_group": 1}).moe
    lite = decoder_from(V2_LITE).moe
    grouped = {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}
    large = decoder_from({**V2_LITE, **grouped, "routed_scaling_factor": 16.0}).moe
    assert one is not None
    assert lite is not None
    assert large is not None
    assert one.router.name == "sigmoid_topk"
    assert lite.router.model_dump() == {
        "kind": "softmax_topk",
        "renormalise": False,
        "choosing_bias": False,
    }
    assert large.router.model_dump() == {
        "kind": "deepseek_v2",
        "groups": 8,
        "groups_kept": 3,
        "renormalise": False,
        "scale": 16.0,
    }


@pytest.mark.parametrize(
    "config",
    [
        V3,
        V2_LITE,
        {**V3, "rope_scaling": {**V3["rope_scaling"], "mscale_all_dim": 0.707}},
        {**V3, "rope_scaling": None, "attention_bias": True, "rope_interleave": False},
        {**V3, "moe_layer_freq": 2, "n_shared_experts": 0},
        {**V2_LITE, "routed_scaling_factor": 0.5, "first_k_dense_replace": 0},
    ],
)
def test_what_is_written_reads_the_same(config: dict[str, Any]) -> None:
    # The same of fewer layers; each would list hundreds of experts.
    config = {**config, "num_hidden_layers": 7}
    decoder = decoder_from(config)
    family = family_of(config)
    written = family.write(decoder.model_dump())
    assert decoder_from(written) == decoder
    assert list(family_of(written).pieces(decoder)) == list(family.pieces(decoder))


def test_moe_in_every_second_layer_counts_from_layer_0() -> None:
    # The authors' rule: layer >= 3 and layer % 2 == 0.
    shape = shape_from({**V3, "moe_layer_freq": 2, "num_hidden_layers": 8})
    assert list(shape.moe_shapes) == [4, 6]


def test_layers_for_multi_token_prediction_are_known_by_number() -> None:
    known = {
        pattern: word for pattern, word in family_of(V3).left_out.items() if "model" in pattern
    }
    ((pattern, word),) = known.items()
    assert re.fullmatch(pattern, "model.layers.61.eh_proj.weight")
    assert not re.fullmatch(pattern, "model.layers.60.mlp.gate.weight")
    assert not re.fullmatch(pattern, "model.layers.62.eh_proj.weight")
    assert "multi-token prediction" in word
    assert family_of(V2_LITE).left_out == FAMILIES["llama"].left_out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**V3, "scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({**V3, "topk_method": "greedy"}, "topk_method='greedy'"),
        ({**V3, "num_key_value_heads": 8}, "num_key_value_heads=8"),
        ({**V3, "hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({**V2_LITE, "norm_topk_prob": True}, "norm_topk_prob=True"),
        ({**V2_LITE, "topk_method": "noaux_tc"}, "topk_method='noaux_tc'"),
        ({**V2_LITE, "mlp_bias": True}, "mlp_bias=True"),
        ({**V2_LITE, "kv_lora_rank": None}, "missing key 'kv_lora_rank'"),
    ],
)
def test_what_the_decoder_has_not_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        family_of(config).read(config)


def test_a_family_without_words_for_it_refuses_to_write() -> None:
    decoder = decoder_from(V3).model_dump()
    with pytest.raises(ConfigError, match=r"attention\.kind='latent' has no place in a mixtral"):
        FAMILIES["mixtral"].write(decoder)
    # 3000 is no multiple of 2048.
    decoder["moe"]["shared_width"] = 3000
    with pytest.raises(ConfigError, match="shared_width=3000 is no multiple of expert_width=2048"):
        FAMILIES["deepseek_v3"].write(decoder)
