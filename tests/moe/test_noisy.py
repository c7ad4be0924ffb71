"""The noisy top-k gate. T tokens, E experts, K experts per token.

One token serves throughout: an identity gate, and x = (ln 1, ln 2, ln 5), so that the clean logits
are x itself.
"""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Dropless, MoE, MoEConfig, importance_loss, load_loss
from mixtura.moe.routers import NoisyTopK, NoisyTopKConfig, RouterShape
from mixtura.moe.routers.noisy import NoisyScores, selection_probability
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

X_1D = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()


def router(*, zeros: bool = False) -> NoisyTopK:
    made = NoisyTopK(NoisyTopKConfig(), RouterShape(3, 3, 2), Dropless()).double()
    if not zeros:
        with torch.no_grad():
            made.weight.copy_(torch.eye(3))
    return made


def layer(balance: dict[str, float] | None = None) -> MoE:
    tree = {"num_experts": 4, "top_k": 2, "expert_width": 4, "router": {"kind": "noisy_topk"}}
    return MoE(3, MoEConfig.parse({**tree, "balance": balance or {}}))


def test_without_noise_in_evaluation() -> None:
    routing = router().eval()(Tokens(X_1D))
    # Softmax over ln 5 and ln 2 alone.
    assert routing.chosen_N.tolist() == [2, 1]
    assert routing.weight_N.tolist() == pytest.approx([5 / 7, 2 / 7], rel=1e-12)
    assert "load_E" not in routing.terms


def test_gates_start_from_zeros() -> None:
    made = router(zeros=True)
    assert not made.weight.any()
    assert not made.noise_weight.any()
    # Softplus(0) = ln 2: every expert starts with noise of that deviation, and none is preferred.
    scores = made.scores(X_1D, None)
    assert scores.deviation_TE.tolist() == [pytest.approx([math.log(2)] * 3)]
    assert scores.logits_TE.tolist() == [[0, 0, 0]]


def test_noise_moves_the_choice_in_training_as_its_deviation_says() -> None:
    torch.manual_seed(0)
    routing = router()(Tokens(X_1D.repeat(20_000, 1)))
    # Expert 0 is chosen unless it comes last of three: ln 1 + noise below both others.
    share_E = torch.bincount(routing.chosen_N, minlength=3) / 20_000
    noise = torch.randn(200_000, 3, dtype=torch.float64) * math.log(2)
    last_E = torch.bincount((X_1D + noise).argmin(1), minlength=3) / 200_000
    assert share_E.tolist() == pytest.approx((1 - last_E).tolist(), abs=0.015)


def test_the_chance_of_selection_by_hand() -> None:
    # Clean 1, 2, 4; noisy 1.5, 3, 2.5; deviations 1, 2, 0.5; k = 1, so noisy best is expert 1.
    scores = NoisyScores(
        logits_TE=torch.tensor([[1.0, 2.0, 4.0]]),
        score_TE=torch.tensor([[1.5, 3.0, 2.5]]),
        probs_TE=torch.zeros(1, 3),
        deviation_TE=torch.tensor([[1.0, 2.0, 0.5]]),
    )
    # Experts 0 and 2 have to beat 3, the best; expert 1 has to beat 2.5, the best of the others.
    phi = NormalDist().cdf
    expected = [phi((1 - 3) / 1), phi((2 - 2.5) / 2), phi((4 - 3) / 0.5)]
    found = selection_probability(scores, torch.tensor([[1, 2]]), 1)
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_smooth_load_is_the_expected_load() -> None:
    torch.manual_seed(0)
    x_TD = X_1D.repeat(20_000, 1)
    routing = router()(Tokens(x_TD))
    smooth_E = routing.terms["load_E"]
    load_E = torch.bincount(routing.chosen_N, minlength=3)
    assert smooth_E.tolist() == pytest.approx(load_E.tolist(), rel=0.03)


@pytest.mark.parametrize("shrunk", [-30.0, -60.0, -200.0])
def test_noise_that_has_vanished_leaves_gradients_finite(shrunk: float) -> None:
    # Softplus(-60) is 9e-27, whose square underflows in fp32; Softplus(-200) is 0.
    made = router().float()
    with torch.no_grad():
        made.noise_weight[0] = torch.tensor([0.0, shrunk / math.log(2), 0.0])
    routing = made(Tokens(X_1D.float().repeat(4, 1)))
    # Without noise of its own an expert is in or out: its chances are whole numbers.
    load = routing.terms["load_E"][0].item()
    assert load == round(load)
    load_loss(routing).backward()
    assert made.noise_weight.grad is not None
    assert made.noise_weight.grad.isfinite().all()


def test_with_no_more_experts_than_choices_every_chance_is_one() -> None:
    made = NoisyTopK(NoisyTopKConfig(), RouterShape(3, 2, 2), Dropless())
    assert made(Tokens(torch.randn(5, 3))).terms["load_E"].tolist() == [5, 5]


def test_padding_has_no_load_and_no_importance() -> None:
    torch.manual_seed(0)
    valid_T = torch.tensor([True, True, False])
    made, x_TD = router(), torch.randn(3, 3, dtype=torch.float64)
    torch.manual_seed(1)
    padded = made(Tokens(x_TD, valid_T))
    torch.manual_seed(1)
    noise_TE = torch.randn(3, 3, dtype=torch.float64)
    scores = made.scores(x_TD, None)
    scores = replace(scores, score_TE=scores.logits_TE + noise_TE * scores.deviation_TE)
    best_TK = scores.score_TE.topk(3).indices
    expected_E = selection_probability(scores, best_TK, 2)[:2].sum(0)
    torch.testing.assert_close(padded.terms["load_E"], expected_E)
    assert padded.weight_N[4:].tolist() == [0, 0]


def routing_of(weight_N: list[float], load_E: list[float]) -> Routing:
    weight_TK = torch.tensor(weight_N).view(2, 2)
    routing = Routing.of_choices(torch.tensor([[0, 1], [0, 1]]), weight_TK, 2)
    return replace(routing, terms={"load_E": torch.tensor(load_E)})


def test_importance_and_load_losses_by_hand() -> None:
    # Importance 1.5 and 0.5: mean 1, deviation 0.5, CV^2 = 1/4. Load 3 and 1: mean 2, 1/4 again.
    routing = routing_of([0.75, 0.25, 0.75, 0.25], [3.0, 1.0])
    assert importance_loss(routing).item() == 0.25
    assert load_loss(routing).item() == 0.25
    even = routing_of([0.5, 0.5, 0.5, 0.5], [2.0, 2.0])
    assert importance_loss(even).item() == load_loss(even).item() == 0


def test_importance_and_load_are_its_losses_unless_others_are_asked_for() -> None:
    assert set(layer()(torch.randn(6, 3)).losses) == {"importance", "load"}
    chosen = layer({"importance": 0, "load": 0.2, "loss": 0.01})
    output = chosen(torch.randn(6, 3))
    assert set(output.losses) == {"balance", "load"}
    assert output.losses["load"].item() == pytest.approx(0.2 * load_loss(output.routing).item())


def test_a_loss_that_the_router_cannot_serve_is_refused() -> None:
    tree = {"num_experts": 4, "top_k": 2, "expert_width": 4, "balance": {"load": 0.1}}
    with pytest.raises(ConfigError, match=r"balance.load=0.1 under router kind=softmax_topk"):
        MoEConfig.parse(tree)


def test_a_single_expert_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"top_k=1 under router kind=noisy_topk"):
        MoEConfig.parse(
            {"num_experts": 4, "top_k": 1, "expert_width": 4, "router": {"kind": "noisy_topk"}}
        ).check_gradient()


def test_gradients_against_finite_differences() -> None:
    made = router()
    x_TD = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    noise_weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def results(x_TD: Tensor, weight: Tensor, noise_weight: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        parameters = {"weight": weight, "noise_weight": noise_weight}
        routing = torch.func.functional_call(made, parameters, (Tokens(x_TD),))
        return routing.weight_N, routing.terms["load_E"]

    assert torch.autograd.gradcheck(results, (x_TD, weight, noise_weight))
