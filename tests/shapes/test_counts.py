"""Counts of parameters and FLOPs, by hand and as published."""

import pytest

from mixtura.errors import ConfigError
from mixtura.shapes import AttentionShape, DecoderShape, MoEPlacement, MoEShape

# One layer: attention 32 + 16, two norms 8: 56. The first has a dense FFN, the second an MoE.
#   qkv  (2 heads + 2 * 1 kv_head) * 2 = 8 rows of 4 = 32;  out 4 * 4 = 16
#   dense FFN  2*6 * 4 + 4 * 6 = 72
#   MoE  router 3 * 4 = 12; an expert 2*5 * 4 + 4 * 5 = 60, three 180; shared 2*3 * 4 + 4 * 3 = 36;
#        shared gate 4
#   embedding 10 * 4 = 40, head 40, last norm 4
# Total  2 * 56 + 72 + (12 + 180 + 36 + 4) + 40 + 40 + 4 = 500
TINY = DecoderShape(
    layers=2,
    width=4,
    vocabulary=10,
    context=7,
    attention=AttentionShape(heads=2, kv_heads=1, head_dim=2),
    ffn_width=6,
    moe=MoEShape(
        num_experts=3,
        top_k=2,
        expert_width=5,
        shared_width=3,
        shared_gate=True,
        placement=MoEPlacement(first_dense=1),
    ),
)


def changed(shape: DecoderShape, **fields: object) -> DecoderShape:
    return DecoderShape.parse({**shape.model_dump(), **fields})


def test_total_by_hand() -> None:
    assert TINY.total_parameters() == 500


def test_active_by_hand() -> None:
    # One expert of three rests: 500 - 60 = 440. B leaves the embedding out: 440 - 40 = 400.
    assert TINY.active_parameters() == 440
    assert TINY.active_parameters("A") == 440
    assert TINY.active_parameters("B") == 400


def test_a_tied_head_counts_once_and_stays_active_in_both_conventions() -> None:
    # 500 - 40 = 460; one expert rests: 460 - 60 = 400, and B has no untied embedding to leave out.
    tied = changed(TINY, tied_head=True)
    assert tied.total_parameters() == 460
    assert tied.active_parameters("A") == tied.active_parameters("B") == 400


def test_a_dense_decoder_is_wholly_active() -> None:
    # The MoE's 232 become a second FFN of 72: 500 - 232 + 72 = 340.
    dense = changed(TINY, moe=None)
    assert dense.total_parameters() == dense.active_parameters("A") == 340
    assert dense.active_parameters("B") == 300


def test_an_ungated_ffn_has_two_matrices() -> None:
    # 4 * 6 + 6 * 4 = 48 in each of two layers: 2 * 56 + 2 * 48 + 40 + 40 + 4 = 292.
    assert changed(TINY, moe=None, activation="relu").total_parameters() == 292


def test_a_residual_branch_adds_its_ffn_and_its_mixer() -> None:
    # 2*2 * 4 + 4 * 2 = 24 and a mixer of 2 * 4 = 8, both active.
    assert TINY.moe is not None
    wider = changed(TINY, moe={**TINY.moe.model_dump(), "residual_width": 2})
    assert wider.total_parameters() == 500 + 32
    assert wider.active_parameters() == 440 + 32


def test_flops_by_hand() -> None:
    # Multiplied weights: 440 active, less the embedding's 40 and five norms of 4: 380, two each.
    # Attention at 7 positions: 2 layers * (2 * 2 * 7 for scores + as much for values) * 2 = 224.
    assert TINY.flops_per_token(7) == 2 * 380 + 224
    assert TINY.flops_per_token() == TINY.flops_per_token(TINY.context)
    assert TINY.flops_per_token(0) == 2 * 380


def test_tying_the_head_changes_no_flops() -> None:
    # The embedding is looked up, not multiplied; the head is multiplied, tied or not.
    assert changed(TINY, tied_head=True).flops_per_token(7) == TINY.flops_per_token(7)


MIXTRAL_8X7B = DecoderShape(
    layers=32,
    width=4096,
    vocabulary=32000,
    context=32768,
    attention=AttentionShape(heads=32, kv_heads=8, head_dim=128, rope_base=1e6),
    moe=MoEShape(num_experts=8, top_k=2, expert_width=14336),
)
DBRX = DecoderShape(
    layers=40,
    width=6144,
    vocabulary=100352,
    context=32768,
    attention=AttentionShape(heads=48, kv_heads=8, head_dim=128, rope_base=5e5),
    moe=MoEShape(num_experts=16, top_k=4, expert_width=10752),
)


@pytest.mark.parametrize(
    ("shape", "total", "active_a", "active_b"),
    [
        # Announced as 47B, 13B active, and as 132B, 36B active.
        (MIXTRAL_8X7B, 46_702_792_704, 12_879_925_248, 12_748_853_248),
        (DBRX, 131_596_523_520, 36_469_708_800, 35_853_146_112),
    ],
    ids=["mixtral-8x7b", "dbrx"],
)
def test_published_models(shape: DecoderShape, total: int, active_a: int, active_b: int) -> None:
    assert shape.total_parameters() == total
    assert shape.active_parameters("A") == active_a
    assert shape.active_parameters("B") == active_b


def test_published_parts_of_mixtral() -> None:
    # One expert 3 * 4096 * 14336 = 176,160,768; a router 8 * 4096 = 32,768;
    # attention 2 * 4096 * 4096 + 2 * 4096 * 1024 = 41,943,040.
    layer = [w for w in MIXTRAL_8X7B.weights() if w.name.startswith("blocks.0.")]
    by_role: dict[str, int] = {}
    for weight in layer:
        by_role[weight.role] = by_role.get(weight.role, 0) + weight.parameters
    assert by_role == {
        "norm": 2 * 4096,
        "attention": 41_943_040,
        "router": 32_768,
        "expert": 8 * 176_160_768,
    }


@pytest.mark.parametrize(
    ("placement", "layers"),
    [
        ({}, [0, 1, 2, 3, 4]),
        # Every other layer, starting with the second.
        ({"every": 2}, [1, 3]),
        ({"first_dense": 3}, [3, 4]),
        ({"every": 2, "first_dense": 2}, [3]),
        ({"only": [4, 0]}, [0, 4]),
    ],
)
def test_placement(placement: dict[str, object], layers: list[int]) -> None:
    rule = MoEPlacement.parse(placement)
    assert [layer for layer in range(5) if rule.holds_moe(layer)] == layers


ATTENTION = {"heads": 4, "kv_heads": 2, "head_dim": 8}
MOE = {"num_experts": 4, "top_k": 2, "expert_width": 8}
SHAPE = {
    "layers": 4,
    "width": 32,
    "vocabulary": 64,
    "context": 16,
    "attention": ATTENTION,
    "moe": MOE,
}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"moe": {**MOE, "top_k": 5}}, ["moe", "top_k=5", "1..num_experts=4"]),
        ({"moe": {**MOE, "top_k": 0}}, ["moe.top_k", "greater than or equal to 1", "given 0"]),
        ({"moe": {**MOE, "shared_gate": True}}, ["shared_gate=true", "shared_width above 0"]),
        ({"attention": {**ATTENTION, "kv_heads": 3}}, ["heads=4", "kv_heads=3"]),
        ({"attention": {**ATTENTION, "head_dim": 5}}, ["head_dim=5", "even"]),
        ({"attention": {**ATTENTION, "rope_base": 1}}, ["rope_base", "greater than 1", "given 1"]),
        ({"attention": {**ATTENTION, "rope_base": float("inf")}}, ["rope_base", "finite"]),
        ({"moe": {**MOE, "placement": {"only": [4]}}}, ["layer 4", "0..layers-1=3"]),
        ({"moe": {**MOE, "placement": {"only": [-1]}}}, ["layer -1", "0..layers-1=3"]),
        ({"moe": {**MOE, "placement": {"only": [1], "every": 2}}}, ["only=[1]", "every=2"]),
        (
            {"moe": {**MOE, "placement": {"only": [1], "first_dense": 2}}},
            ["only=[1]", "first_dense=2"],
        ),
        ({"moe": {**MOE, "placement": {"every": 2}}}, ["ffn_width", "missing"]),
        ({"moe": None}, ["ffn_width", "missing"]),
        # A model without an MoE where one was asked for would be dense in silence.
        ({"moe": {**MOE, "placement": {"every": 5}}}, ["moe.placement", "none of layers=4"]),
        ({"moe": {**MOE, "placement": {"only": []}}}, ["moe.placement", "none of layers=4"]),
        ({"layers": 0}, ["layers", "greater than or equal to 1", "given 0"]),
    ],
)
def test_a_bad_shape_names_its_value_and_bound(tree: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        DecoderShape.parse({**SHAPE, **tree})
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("of_the_decoder", "of_the_moe", "expected"),
    [
        ({}, {}, ("swiglu", "swiglu")),
        ({"activation": "relu"}, {}, ("relu", "relu")),
        ({"activation": "relu"}, {"activation": "gelu"}, ("relu", "gelu")),
        ({"activation": "relu"}, {"activation": "swiglu"}, ("relu", "swiglu")),
        ({}, {"activation": "relu"}, ("swiglu", "relu")),
    ],
)
def test_an_moe_that_names_no_activation_takes_the_decoders(
    of_the_decoder: dict[str, str], of_the_moe: dict[str, str], expected: tuple[str, str]
) -> None:
    tree = {**SHAPE, **of_the_decoder, "moe": {**MOE, **of_the_moe}}
    # As a recipe gives it, and as Python does.
    in_python = {**tree, "moe": MoEShape.parse({**MOE, **of_the_moe})}
    for shape in (DecoderShape.parse(tree), DecoderShape.parse(in_python)):
        assert shape.moe is not None
        assert (shape.activation, shape.moe.activation) == expected
        assert DecoderShape.parse(shape.model_dump()) == shape


def test_an_unknown_activation_is_the_decoders_fault() -> None:
    with pytest.raises(ConfigError, match=r"config: activation: .*'rleu'"):
        DecoderShape.parse({**SHAPE, "activation": "rleu"})
