"""T tokens, K experts a token, D width, E experts, F expert width."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.native import instruction_sets, native
from mixtura.kernels.packed.experts import (
    PackedBiases,
    RoutedRows,
    biases_in_tiles,
    packed_experts,
    packed_experts_naive,
)
from mixtura.kernels.packed.groups import Bits, quantise
from mixtura.kernels.packed.linear import Arithmetic, arithmetic_of
from mixtura.kernels.packed.tiles import ExpertGroups, tile_expert
from mixtura.kernels.phase import PHASES, Phase
from mixtura.shapes import Activation
from mixtura.shapes.activations import is_gated

SETS = instruction_sets()
WIDTH, EXPERTS = 96, 5
needs_native = pytest.mark.skipif(native() is None, reason="no compiled kernels here")


def some_experts(hidden: int, activation: Activation, bits: Bits) -> list[ExpertGroups]:
    rows = hidden * (2 if is_gated(activation) else 1)
    return [
        ExpertGroups(
            quantise(torch.randn(rows, WIDTH) / 8, bits),
            quantise(F.pad(torch.randn(WIDTH, hidden) / 8, (0, -hidden % 32)), bits),
        )
        for _ in range(EXPERTS)
    ]


def tiled(experts: list[ExpertGroups], activation: Activation) -> Tensor:
    return torch.stack([tile_expert(one.w_in, one.w_out, is_gated(activation)) for one in experts])


def routed(tokens: int, top_k: int = 2) -> RoutedRows:
    """Some choices wish for expert EXPERTS, which is none."""
    chosen_TK = torch.rand(tokens, EXPERTS + 1).argsort(1)[:, :top_k]
    token_N = torch.arange(tokens).repeat_interleave(top_k)
    return RoutedRows(token_N, chosen_TK.flatten(), torch.rand(tokens * top_k))


def of_token(rows: RoutedRows, token: int) -> RoutedRows:
    own = rows.token_N == token
    return RoutedRows(rows.token_N[own] - token, rows.expert_N[own], rows.weight_N[own])


def relative_error(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm().clamp(min=1e-9))


def bound(bits: Bits, arithmetic: Arithmetic) -> float:
    """A hidden value that lies between two numbers may be rounded to either."""
    return 1e-4 if bits == 8 and arithmetic != "bf16" else 3e-3


@needs_native
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("phase", list(PHASES))
@pytest.mark.parametrize(
    ("hidden", "activation"),
    [
        (48, "swiglu"),
        (80, "swiglu_clamped"),
        (272, "geglu"),
        (176, "geglu_tanh"),
        (64, "gelu"),
        (160, "relu"),
    ],
)
@pytest.mark.parametrize("with_biases", [False, True])
def test_every_instruction_set_is_its_twin(
    bits: Bits, phase: Phase, hidden: int, activation: Activation, with_biases: bool
):
    torch.manual_seed(hidden)
    experts = some_experts(hidden, activation, bits)
    tiles_ES = tiled(experts, activation)
    biases = some_biases(hidden, activation) if with_biases else None
    for tokens in (0, 1, 3, 8, 40):
        x_TD, rows = torch.randn(tokens, WIDTH), routed(tokens)
        for kernels in SETS:
            arithmetic = arithmetic_of(phase, kernels)
            naive_TD = packed_experts_naive(
                x_TD, rows, enumerate(experts), activation, arithmetic, biases
            )
            y_TD = packed_experts(
                x_TD, rows, tiles_ES, hidden, bits, activation, phase, biases, kernels
            )
            assert relative_error(y_TD, naive_TD) < bound(bits, arithmetic), (kernels, tokens)


def some_biases(hidden: int, activation: Activation) -> PackedBiases:
    gated = is_gated(activation)
    in_EH = torch.randn(EXPERTS, hidden * (2 if gated else 1))
    return biases_in_tiles(in_EH, torch.randn(EXPERTS, WIDTH), hidden, gated)


@needs_native
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("phase", list(PHASES))
def test_every_count_of_rows_and_a_token_alone(bits: Bits, phase: Phase):
    experts = some_experts(64, "swiglu", bits)
    tiles_ES = tiled(experts, "swiglu")
    for kernels in SETS:
        for tokens in range(41):
            x_TD, rows = torch.randn(tokens, WIDTH), routed(tokens, top_k=3)
            y_TD = packed_experts(x_TD, rows, tiles_ES, 64, bits, "swiglu", phase, None, kernels)
            arithmetic = arithmetic_of(phase, kernels)
            naive_TD = packed_experts_naive(x_TD, rows, enumerate(experts), "swiglu", arithmetic)
            assert relative_error(y_TD, naive_TD) < bound(bits, arithmetic), (kernels, tokens)
            for token in range(0, tokens, 7):
                own = of_token(rows, token)
                alone_1D = packed_experts(
                    x_TD[token : token + 1], own, tiles_ES, 64, bits, "swiglu", phase, None, kernels
                )
                assert torch.equal(alone_1D[0], y_TD[token]), (kernels, tokens, token)


@needs_native
def test_all_tokens_at_one_expert_and_none_at_the_others():
    # 300 rows pass the 256 that are computed at once.
    experts = some_experts(64, "swiglu", 8)
    x_TD = torch.randn(300, WIDTH)
    rows = RoutedRows(torch.arange(300), torch.full((300,), 3), torch.ones(300))
    for phase in PHASES:
        for kernels in SETS:
            y_TD = packed_experts(
                x_TD, rows, tiled(experts, "swiglu"), 64, 8, "swiglu", phase, None, kernels
            )
            arithmetic = arithmetic_of(phase, kernels)
            naive_TD = packed_experts_naive(x_TD, rows, enumerate(experts), "swiglu", arithmetic)
            assert relative_error(y_TD, naive_TD) < bound(8, arithmetic), kernels


def test_without_the_compiled_module_pytorch_serves(monkeypatch: pytest.MonkeyPatch):
    experts = some_experts(48, "swiglu", 4)
    biases = some_biases(48, "swiglu")
    x_TD, rows = torch.randn(6, WIDTH), routed(6)
    naive_TD = packed_experts_naive(x_TD, rows, enumerate(experts), "swiglu", "bf16", biases)
    monkeypatch.setattr("mixtura.kernels.packed.experts.native", lambda: None)

    y_TD = packed_experts(x_TD, rows, tiled(experts, "swiglu"), 48, 4, "swiglu", "prefill", biases)

    # The twin rounds to bf16.
    assert relative_error(y_TD, naive_TD) < 1e-2


def test_tokens_out_of_range_are_refused():
    experts = some_experts(48, "swiglu", 4)
    rows = RoutedRows(torch.tensor([4]), torch.tensor([0]), torch.ones(1))

    with pytest.raises(ValueError, match=r"tokens must lie in 0..3"):
        packed_experts(
            torch.randn(4, WIDTH), rows, tiled(experts, "swiglu"), 48, 4, "swiglu", "decode"
        )


def test_experts_of_another_size_are_refused():
    experts = some_experts(48, "swiglu", 4)

    with pytest.raises(ValueError, match="tiles must be uint8 rows of"):
        packed_experts(
            torch.randn(4, WIDTH), routed(4), tiled(experts, "swiglu"), 512, 4, "swiglu", "decode"
        )
