"""Local experts against the sums of the 1991 paper. B cases, E experts, O outputs."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.models.historic.local_experts import (
    ERRORS,
    ErrorKind,
    LocalExperts,
    LocalExpertsConfig,
    LocalExpertsOutput,
    StackedLinear,
    competitive_error,
    cooperative_error,
    mixture_error,
)

KINDS: list[ErrorKind] = ["cooperative", "competitive", "mixture"]


def of(outputs_BEO: Tensor, logits_BE: Tensor) -> LocalExpertsOutput:
    return LocalExpertsOutput(outputs_BEO, logits_BE.log_softmax(-1))


def one_case() -> tuple[LocalExpertsOutput, Tensor]:
    """Two experts that say 0 and 0.5, gate logits log 1 and log 3, target 1."""
    outputs_BEO = torch.tensor([[[0.0], [0.5]]])
    logits_BE = torch.tensor([[0.0, math.log(3.0)]])
    return of(outputs_BEO, logits_BE), torch.tensor([[1.0]])


def random_case(
    experts: int = 3, outputs: int = 2
) -> tuple[LocalExpertsOutput, Tensor, list[Tensor]]:
    """Four cases in float64, and the leaves: expert outputs, then gate logits."""
    generator = torch.Generator().manual_seed(experts)
    options: dict[str, Any] = {"dtype": torch.float64, "generator": generator}
    outputs_BEO = torch.randn(4, experts, outputs, **options).requires_grad_()
    logits_BE = torch.randn(4, experts, **options).requires_grad_()
    target_BO = torch.randn(4, outputs, **options)
    return of(outputs_BEO, logits_BE), target_BO, [outputs_BEO, logits_BE]


def test_the_gate_and_the_blend_by_hand() -> None:
    # p = (1, 3) / 4; blend = 0.25 * 0 + 0.75 * 0.5 = 0.375.
    output, _ = one_case()
    torch.testing.assert_close(output.probs_BE, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(output.blended_BO, torch.tensor([[0.375]]))


def test_cooperative_error_by_hand() -> None:
    # (1 - 0.375)^2 = 0.390625.
    output, target_BO = one_case()
    assert cooperative_error(output, target_BO).tolist() == pytest.approx([0.390625])


def test_competitive_error_by_hand() -> None:
    # 0.25 * 1^2 + 0.75 * 0.5^2 = 0.25 + 0.1875 = 0.4375.
    output, target_BO = one_case()
    assert competitive_error(output, target_BO).tolist() == pytest.approx([0.4375])


def test_mixture_error_and_posterior_by_hand() -> None:
    # e^-0.5 = 0.606531, e^-0.125 = 0.882497: 0.25 * 0.606531 = 0.151633, 0.75 * 0.882497 =
    # 0.661873, their sum 0.813505, -log of it 0.206403; h = 0.151633 / 0.813505 = 0.186394.
    output, target_BO = one_case()
    assert mixture_error(output, target_BO).tolist() == pytest.approx([0.206403], abs=1e-6)
    h_BE = output.posterior_BE(target_BO)
    torch.testing.assert_close(h_BE, torch.tensor([[0.186394, 0.813606]]), atol=1e-6, rtol=0)


def test_several_outputs_add_up() -> None:
    # One expert, p = 1: ||(1, 2) - (0, 0)||^2 = 5 in equations 1 and 2; -log e^-2.5 = 2.5 in 3.
    output = of(torch.zeros(1, 1, 2), torch.zeros(1, 1))
    target_BO = torch.tensor([[1.0, 2.0]])
    found = [ERRORS[kind](output, target_BO).item() for kind in KINDS]
    assert found == pytest.approx([5.0, 5.0, 2.5])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_to_the_experts_are_the_papers(kind: ErrorKind) -> None:
    output, target_BO, (outputs_BEO, _) = random_case()
    p_BE1 = output.probs_BE.detach()[:, :, None]
    h_BE1 = output.posterior_BE(target_BO).detach()[:, :, None]
    away_BEO = target_BO[:, None] - outputs_BEO.detach()
    left_BO = target_BO - output.blended_BO.detach()
    wanted = {
        # The derivative of equation 1: every expert is pushed by the same residual.
        "cooperative": -2 * p_BE1 * left_BO[:, None],
        # Equation 4, with its factor of 2.
        "competitive": -2 * p_BE1 * away_BEO,
        # Equation 5: the posterior, and no factor.
        "mixture": -h_BE1 * away_BEO,
    }
    error_B = ERRORS[kind](output, target_BO)
    (found_BEO,) = torch.autograd.grad(error_B.sum(), outputs_BEO)
    torch.testing.assert_close(found_BEO, wanted[kind])


@pytest.mark.parametrize("kind", ["competitive", "mixture"])
def test_gradients_to_the_gate_raise_who_did_better_than_average(kind: ErrorKind) -> None:
    # Equation 2 by logit i: p_i (e_i - sum_j p_j e_j); equation 3: p_i - h_i.
    output, target_BO, (_, logits_BE) = random_case()
    p_BE, h_BE = output.probs_BE.detach(), output.posterior_BE(target_BO).detach()
    squared_BE = output.squared_BE(target_BO).detach()
    above_BE = squared_BE - (p_BE * squared_BE).sum(-1, keepdim=True)
    wanted = {"competitive": p_BE * above_BE, "mixture": p_BE - h_BE}
    error_B = ERRORS[kind](output, target_BO)
    (found_BE,) = torch.autograd.grad(error_B.sum(), logits_BE)
    torch.testing.assert_close(found_BE, wanted[kind])


@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind: ErrorKind, experts: int) -> None:
    _, target_BO, leaves = random_case(experts)

    def error_B(outputs_BEO: Tensor, logits_BE: Tensor) -> Tensor:
        return ERRORS[kind](of(outputs_BEO, logits_BE), target_BO)

    assert torch.autograd.gradcheck(error_B, leaves)


def test_far_from_every_expert_the_better_one_still_learns_faster() -> None:
    # An even gate, distances 2 and 3, both over 1. Equation 4: 2 * 0.5 * 2 = 2 against
    # 2 * 0.5 * 3 = 3. Equation 5: h = e^-2 / (e^-2 + e^-4.5) = 0.924142, so 0.924142 * 2 =
    # 1.848284 against 0.075858 * 3 = 0.227575.
    outputs_BEO = torch.tensor([[[2.0], [3.0]]], requires_grad=True)
    output = of(outputs_BEO, torch.zeros(1, 2))
    target_BO = torch.zeros(1, 1)
    (slow_BEO,) = torch.autograd.grad(competitive_error(output, target_BO).sum(), outputs_BEO)
    assert slow_BEO.flatten().tolist() == pytest.approx([2.0, 3.0])
    (fast_BEO,) = torch.autograd.grad(mixture_error(output, target_BO).sum(), outputs_BEO)
    assert fast_BEO.flatten().tolist() == pytest.approx([1.848284, 0.227575], abs=1e-6)


def test_mixture_error_is_finite_where_the_densities_underflow() -> None:
    # exp(-1e6 / 2) is 0 in float32, and its logarithm -inf. Distances 1e3 and 2e3, even gate:
    # log 2 + 1e6 / 2 = 500000.69; the nearer expert takes it all, and its gradient is 1e3.
    outputs_BEO = torch.tensor([[[1e3], [2e3]]], requires_grad=True)
    output = of(outputs_BEO, torch.zeros(1, 2))
    error_B = mixture_error(output, torch.zeros(1, 1))
    assert error_B.item() == pytest.approx(500000.69)
    (found_BEO,) = torch.autograd.grad(error_B.sum(), outputs_BEO)
    assert found_BEO.flatten().tolist() == [1e3, 0.0]


numbers = st.floats(-3, 3)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6),
    st.floats(-3, 3),
)
def test_the_errors_are_ordered(experts: list[tuple[float, float]], target: float) -> None:
    """Jensen twice: a blend errs no more than its parts; -log of a mean no more than the mean."""
    pairs = torch.tensor(experts, dtype=torch.float64)
    output = of(pairs[None, :, :1], pairs[None, :, 1])
    target_BO = torch.tensor([[target]], dtype=torch.float64)
    competitive = competitive_error(output, target_BO).item()
    assert cooperative_error(output, target_BO).item() <= competitive + 1e-9
    assert mixture_error(output, target_BO).item() <= competitive / 2 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_would_broadcast_is_refused(kind: ErrorKind) -> None:
    output, _ = one_case()
    with pytest.raises(ValueError, match=r"shape \(1,\); it must be .* \(1, 1\): reshape it"):
        ERRORS[kind](output, torch.ones(1))


def build(**changes: Any) -> LocalExperts:
    torch.manual_seed(0)
    tree = {"inputs": 3, "outputs": 2, "num_experts": 4, **changes}
    return LocalExperts(LocalExpertsConfig.parse(tree)).double()


def linear(model: LocalExperts, place: int) -> StackedLinear:
    layer = model.experts[place]
    assert isinstance(layer, StackedLinear)
    return layer


def test_each_expert_is_linear_and_the_gate_starts_even() -> None:
    model, x_BI = build(), torch.randn(5, 3, dtype=torch.float64)
    output = model(x_BI)
    layer = linear(model, 0)
    for expert in range(4):
        wanted_BO = x_BI @ layer.weight[expert] + layer.bias[expert]
        torch.testing.assert_close(output.outputs_BEO[:, expert], wanted_BO)
    assert output.probs_BE.tolist() == [[0.25] * 4] * 5


def test_the_gate_is_a_softmax_of_the_same_input() -> None:
    model, x_BI = build(), torch.randn(5, 3, dtype=torch.float64)
    nn.init.normal_(model.gate.weight)
    nn.init.normal_(model.gate.bias)
    wanted_BE = (x_BI @ model.gate.weight.T + model.gate.bias).softmax(-1)
    torch.testing.assert_close(model(x_BI).probs_BE, wanted_BE)


def test_one_expert_with_a_hidden_layer_is_a_back_propagation_network() -> None:
    model = build(num_experts=1, hidden=[6], output="sigmoid")
    x_BI = torch.randn(5, 3, dtype=torch.float64)
    first, second = linear(model, 0), linear(model, 2)
    hidden_BH = (x_BI @ first.weight[0] + first.bias[0]).sigmoid()
    wanted_BO = (hidden_BH @ second.weight[0] + second.bias[0]).sigmoid()
    torch.testing.assert_close(model(x_BI).blended_BO, wanted_BO)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_has_the_error_of_its_config(kind: ErrorKind) -> None:
    model = build(loss=kind, hidden=[3], output="sigmoid")
    nn.init.normal_(model.gate.weight)
    assert model.error is ERRORS[kind]
    x_BI, target_BO = (torch.randn(2, width, dtype=torch.float64) for width in (3, 2))
    names, leaves = zip(*model.named_parameters(), strict=True)

    def error_B(*tensors: Tensor) -> Tensor:
        output = torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), (x_BI,))
        return model.error(output, target_BO)

    assert torch.autograd.gradcheck(error_B, leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts: .* greater than or equal to 1 .*given 0"),
        ({"inputs": 0}, "inputs: .* greater than or equal to 1"),
        ({"outputs": -1}, "outputs: .* greater than or equal to 1"),
        ({"hidden": [4, 0]}, r"hidden\.1: .* greater than or equal to 1"),
        ({"output": "relu"}, "output: .*'linear' or 'sigmoid'.*given 'relu'"),
        ({"loss": "competetive"}, "loss: .*'cooperative', 'competitive' or 'mixture'"),
        ({"experts": 4}, "unknown key 'experts'; did you mean 'num_experts'"),
    ],
)
def test_bad_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**change)
