"""The ledger against the decoder that is built: names, shapes, and work done."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mixtura.models import Decoder, DecoderConfig
from mixtura.shapes import Mamba2Shape, dense_twin
from mixtura.shapes.activations import OWN

# A busy machine draws slowly, and that is no fault of the code.
CHECKS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    """Small decoders of every kind: tied, gated, shared, residual, and MoEs in odd places."""
    kv_heads = draw(st.integers(1, 2))
    shared_width = draw(st.sampled_from([0, 3]))
    layers = draw(st.integers(1, 4))
    placement = draw(
        st.one_of(
            st.builds(dict, every=st.integers(1, layers)),
            st.builds(dict, first_dense=st.integers(0, layers - 1)),
            st.builds(dict, only=st.lists(st.integers(0, layers - 1), min_size=1, max_size=3)),
        )
    )
    recurrent = draw(st.lists(st.integers(0, layers - 1), max_size=layers - 1, unique=True))
    conv = {"kernel": draw(st.integers(2, 4)), "bias": draw(st.booleans())}
    groups = draw(st.integers(1, 2))
    mamba = {
        "heads": groups * draw(st.integers(1, 3)),
        "head_dim": draw(st.integers(1, 5)),
        "state_dim": draw(st.integers(1, 5)),
        "groups": groups,
        "conv_bias": draw(st.booleans()),
    }
    mixer = draw(
        st.sampled_from([{"kind": "short_conv", **conv}, {"kind": "mamba2", **conv, **mamba}])
    )
    activation = draw(st.sampled_from(OWN))
    router = draw(st.sampled_from(["softmax_topk", "topk_softmax", "sigmoid_topk"]))
    moe = {
        "num_experts": draw(st.integers(2, 5)),
        "top_k": 2,
        "expert_width": draw(st.integers(1, 7)),
        "activation": activation,
        "shared_width": shared_width,
        "shared_gate": shared_width > 0 and draw(st.booleans()),
        "residual_width": draw(st.sampled_from([0, 5])),
        "placement": placement,
        "router": {"kind": router, "choosing_bias": draw(st.booleans())},
    }
    return DecoderConfig.parse(
        {
            "layers": layers,
            "width": draw(st.integers(3, 9)),
            "vocabulary": draw(st.integers(2, 20)),
            "context": 8,
            "attention": {
                "heads": kv_heads * draw(st.integers(1, 3)),
                "kv_heads": kv_heads,
                "head_dim": draw(st.sampled_from([2, 6])),
            },
            "recurrence": {**mixer, "layers": recurrent} if recurrent else None,
            "ffn_width": draw(st.integers(1, 9)),
            "activation": activation,
            "moe": draw(st.sampled_from([moe, moe, moe, None])),
            "tied_head": draw(st.booleans()),
        }
    )


def shapes_of(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in decoder.named_parameters()}


@given(configs())
@settings(CHECKS, max_examples=60)
def test_each_parameter_stands_in_the_ledger_once(config: DecoderConfig) -> None:
    built = shapes_of(Decoder(config))
    ledger = list(config.weights())
    assert {weight.name: weight.shape for weight in ledger} == built
    assert len(ledger) == len(built)


def test_the_twin_can_be_built() -> None:
    config = FLOPS_CASE
    twin = DecoderConfig.parse(dense_twin(config).model_dump())
    assert shapes_of(Decoder(twin)) == {w.name: w.shape for w in twin.weights()}


FLOPS_CASE = DecoderConfig.parse(
    {
        "layers": 2,
        "width": 16,
        "vocabulary": 11,
        "context": 8,
        "attention": {"heads": 2, "kv_heads": 1, "head_dim": 4},
        "ffn_width": 12,
        "moe": {
            "num_experts": 3,
            "top_k": 2,
            "expert_width": 6,
            "shared_width": 4,
            "shared_gate": True,
            "residual_width": 4,
            "backend": "torch_loop",
            "placement": {"first_dense": 1},
        },
    }
)


@pytest.mark.parametrize("tied", [False, True])
def test_matmul_flops_are_those_that_torch_counts(tied: bool) -> None:
    config = DecoderConfig.parse({**FLOPS_CASE.model_dump(), "tied_head": tied})
    decoder = Decoder(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(torch.arange(8)[None])
    # Its registry knows no attention on a CPU: length 0 leaves ours out as well.
    assert counter.get_total_flops() == 8 * config.flops_per_token(0)


def test_a_short_conv_by_hand() -> None:
    # Width 16: 3 x 16 x 16 = 768, 16 x 3 = 48 and 16 x 16 = 256; attention: 4 x 4 heads x 16 rows
    # of 4 = 256 and 16 x 8 = 128.
    tree = {**FLOPS_CASE.model_dump(), "moe": None}
    recurrence = {"kind": "short_conv", "kernel": 3, "layers": [0]}
    mixed = DecoderConfig.parse({**tree, "recurrence": recurrence})
    plain = DecoderConfig.parse(tree)
    assert mixed.attention_layers == [1]
    assert mixed.total_parameters() - plain.total_parameters() == 768 + 48 + 256 - (256 + 128)
    # Two FLOPs a weight, and one layer less that attends to 5 positions of 2 heads of 4.
    fewer = mixed.flops_per_token(5) - plain.flops_per_token(5)
    assert fewer == 2 * (768 + 48 + 256 - 384) - 5 * 4 * 2 * 4


def test_a_gated_delta_net_by_hand() -> None:
    # Width 16, a key head of 4 for 2 value heads of 3: queries, keys and values have 4 + 4 + 6 = 14
    # channels. A projection has (14 + 6) x 16 = 320 weights, gates 4 x 16 = 64, a convolution
    # 14 x 2 = 28, out 16 x 6 = 96; and there are 2 rates, 2 biases and a norm of 3. Attention has
    # 384 as above, and its gate 8 x 16 = 128 more.
    tree = {**FLOPS_CASE.model_dump(), "moe": None}
    heads = {**tree["attention"], "output_gate": True}
    sizes = {"key_heads": 1, "value_heads": 2, "key_dim": 4, "value_dim": 3, "kernel": 2}
    recurrence = {"kind": "gated_delta", **sizes, "layers": [0]}
    plain = DecoderConfig.parse(tree)
    gated = DecoderConfig.parse({**tree, "attention": heads})
    mixed = DecoderConfig.parse({**tree, "recurrence": recurrence})
    assert gated.total_parameters() - plain.total_parameters() == 2 * 128
    assert mixed.total_parameters() - plain.total_parameters() == 320 + 64 + 28 + 7 + 96 - 384
    # Two FLOPs a weight but for the norm, and 7 for each number of the 2 matrices of 4 x 3; one
    # layer less attends to 5 positions.
    fewer = mixed.flops_per_token(5) - plain.flops_per_token(5)
    assert fewer == 2 * (320 + 64 + 28 + 4 + 96 - 384) + 7 * 2 * 4 * 3 - 5 * 4 * 2 * 4


def test_mamba2_by_hand() -> None:
    # Width 8; 4 heads of 3, so 12 inputs; 2 groups of 5 state dims, so 12 + 2 * 10 = 32 channels.
    # Projection 8 * (12 + 32) = 352, steps 8 * 4 = 32, convolution 32 * 3 + 32 = 128, three numbers
    # a head 12, norm 12, out 8 * 12 = 96: 632 in all.
    sizes = {"heads": 4, "head_dim": 3, "state_dim": 5, "groups": 2, "kernel": 3}
    shape = Mamba2Shape.parse({"kind": "mamba2", **sizes, "layers": [0]})
    assert sum(weight.parameters for weight in shape.weights(8, "")) == 632
    assert shape.state(8) == ((2, 32), (4, 5, 3))
    # Five FLOPs for each of the 60 numbers of the matrices.
    assert shape.flops_of_token(8) == 300
