"""Packed modules beside the plain ones that hold the same, dequantised, weights."""

import pytest
import torch
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.kernels.experts_ffn import Biases
from mixtura.kernels.packed.groups import Bits, quantise
from mixtura.kernels.packed.tiles import tile, tile_expert
from mixtura.kernels.phase import current_phase, decoding, in_phase
from mixtura.moe import MoE, MoEConfig, Routing
from mixtura.moe.experts import DenseFFN, Experts
from mixtura.packed.modules import (
    PackedEmbedding,
    PackedExperts,
    PackedFFN,
    PackedLinear,
)
from mixtura.shapes import Activation
from mixtura.shapes.activations import is_gated

BITS: list[Bits] = [4, 8]
# What rounding activations to 8 bits may add, of the output's norm: 0.006 was measured.
ROUNDED = 0.02


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def packed_linear(weight_NK: Tensor, bits: Bits, bias: Tensor | None) -> PackedLinear:
    rows, inputs = weight_NK.shape
    groups = quantise(nn.functional.pad(weight_NK, (0, -inputs % 32)), bits)
    return PackedLinear(tile(groups), rows, inputs, bits, bias)


def packed_experts(
    experts: int, hidden: int, bits: Bits, activation: Activation, biased: bool = False
) -> PackedExperts:
    rows = hidden * (2 if is_gated(activation) else 1)
    w_in, w_out = normal(experts, rows, 32), normal(experts, 32, hidden, seed=1) / 4
    tiles_ES = torch.stack(
        [
            tile_expert(
                quantise(one, bits),
                quantise(nn.functional.pad(other, (0, -hidden % 32)), bits),
                is_gated(activation),
            )
            for one, other in zip(w_in, w_out, strict=True)
        ]
    )
    biases = Biases(normal(experts, rows, seed=2), normal(experts, 32, seed=3)) if biased else None
    kind = PackedFFN if experts == 1 else PackedExperts
    return kind(tiles_ES, 32, hidden, bits, activation, biases)


def plain_experts(packed: PackedExperts, experts: int, biased: bool = False) -> Experts:
    plain = Experts(32, experts, packed.expert_width, packed.activation, "naive", bias=biased)
    held = packed.dequantised()
    with torch.no_grad():
        plain.w_in.copy_(held.w_in)
        plain.w_out.copy_(held.w_out)
        if plain.b_in is not None and plain.b_out is not None:
            plain.b_in.copy_(normal(*plain.b_in.shape, seed=2))
            plain.b_out.copy_(normal(*plain.b_out.shape, seed=3))
    return plain


def routing(tokens: int, experts: int) -> Routing:
    """Two experts a token, some rows without any."""
    generator = torch.Generator().manual_seed(4)
    expert_TK = torch.randint(experts + 1, (tokens, 2), generator=generator)
    return Routing.of_choices(expert_TK, torch.rand(tokens, 2, generator=generator), experts)


def near(found: Tensor, wanted: Tensor, share: float) -> bool:
    return float((found - wanted).detach().norm()) <= share * float(wanted.detach().norm())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("outputs", "inputs"), [(20, 64), (64, 32), (33, 48), (5, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear(outputs: int, inputs: int, bits: Bits, biased: bool) -> None:
    bias = normal(outputs, seed=1) if biased else None
    linear = packed_linear(normal(outputs, inputs), bits, bias)
    x = normal(2, 3, inputs, seed=2)
    wanted = nn.functional.linear(x, linear.dequantised(), bias)
    assert near(linear(x), wanted, ROUNDED)
    with decoding():
        assert near(linear(x), wanted, ROUNDED)
    assert linear(x[:0]).shape == (0, 3, outputs)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("bits", BITS)
def test_linear_is_exact_where_torch_computes_it(bits: Bits) -> None:
    linear = packed_linear(normal(33, 48), bits, normal(33, seed=1))
    x = normal(7, 48, seed=2)
    wanted = nn.functional.linear(x, linear.dequantised(), linear.bias)
    torch.testing.assert_close(linear(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_embedding(bits: Bits) -> None:
    groups = quantise(normal(70, 64), bits)
    embedding = PackedEmbedding(tile(groups), 70, 64, bits)
    linear = PackedLinear(tile(groups), 70, 64, bits, None)
    ids_BS = torch.tensor([[69, 0, 33], [33, 16, 5]])
    assert torch.equal(embedding(ids_BS), linear.dequantised()[ids_BS])
    assert embedding(ids_BS[:0]).shape == (0, 3, 64)


@pytest.mark.parametrize("bad", [-1, 70, 80])
def test_ids_outside_the_table_are_refused_those_of_its_padding_too(bad: int) -> None:
    embedding = PackedEmbedding(tile(quantise(normal(70, 64), 4)), 70, 64, 4)
    with pytest.raises(IndexError, match=r"ids must lie in 0\.\.69"):
        embedding(torch.tensor([3, bad]))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation", ["swiglu", "swiglu_clamped", "geglu_tanh", "gelu", "relu"])
@pytest.mark.parametrize("hidden", [32, 24])
def test_experts_combine_as_plain_ones_do(hidden: int, activation: Activation, bits: Bits) -> None:
    packed = packed_experts(3, hidden, bits, activation)
    plain, x_TD, rows = plain_experts(packed, 3), normal(9, 32, seed=5), routing(9, 3)
    wanted = plain(x_TD, rows)
    assert near(packed(x_TD, rows), wanted, 2 * ROUNDED)
    with decoding():
        assert near(packed(x_TD, rows), wanted, 2 * ROUNDED)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("bits", BITS)
def test_experts_with_biases_are_exact_where_torch_computes_them(bits: Bits) -> None:
    packed = packed_experts(3, 24, bits, "swiglu_clamped", biased=True)
    plain, x_TD, rows = plain_experts(packed, 3, biased=True), normal(9, 32, seed=5), routing(9, 3)
    wanted = plain(x_TD, rows)
    torch.testing.assert_close(packed(x_TD, rows), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("activation", ["geglu", "relu"])
def test_a_dense_ffn_is_one_expert(activation: Activation) -> None:
    packed = packed_experts(1, 40, 4, activation)
    plain, held = DenseFFN(32, 40, activation), packed.dequantised()
    with torch.no_grad():
        plain.w_in.copy_(held.w_in[0])
        plain.w_out.copy_(held.w_out[0])
    x = normal(2, 3, 32, seed=5)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-4, atol=1e-4)
    assert packed(x[:0]).shape == (0, 3, 32)


def test_a_layer_takes_packed_experts() -> None:
    torch.manual_seed(0)
    layer = MoE(32, MoEConfig(num_experts=3, top_k=2, expert_width=32)).eval()
    packed = packed_experts(3, 32, 8, "swiglu")
    layer.experts = plain_experts(packed, 3)
    x = normal(2, 5, 32, seed=6)
    wanted = layer(x).hidden
    layer.experts = packed  # pyright: ignore[reportAttributeAccessIssue]
    assert near(layer(x).hidden, wanted, 2 * ROUNDED)


def test_phases_nest_and_end() -> None:
    assert current_phase() == "prefill"
    with decoding():
        assert current_phase() == "decode"
        with in_phase("prefill"):
            assert current_phase() == "prefill"
        assert current_phase() == "decode"
    assert current_phase() == "prefill"


def test_an_error_ends_a_phase() -> None:
    with pytest.raises(KeyError), decoding():
        raise KeyError
    assert current_phase() == "prefill"


def test_training_is_refused() -> None:
    linear = packed_linear(normal(32, 32), 4, None)
    model = nn.Sequential(nn.ReLU(), linear).eval()
    assert not linear.training
    with pytest.raises(ConfigError, match="a packed model cannot be trained; train the model that"):
        model.train()


def test_nothing_in_them_is_a_parameter() -> None:
    packed = packed_experts(3, 32, 4, "swiglu", biased=True)
    assert not list(packed.parameters())
    assert packed.half().tiles.dtype == torch.uint8
