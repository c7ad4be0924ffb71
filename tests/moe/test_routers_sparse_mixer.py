"""SparseMixer's two draws and their gradient. T tokens, D width, E experts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Dropless, MoEConfig
from mixtura.moe.routers import RouterShape, SparseMixer
from mixtura.moe.routers.sparse_mixer import near_best, scaled
from mixtura.moe.tokens import Tokens

DRAWS = 20_000


def config(top_k: int = 2, **router: Any) -> MoEConfig:
    tree = {"num_experts": 4, "top_k": top_k, "expert_width": 4}
    return MoEConfig.parse({**tree, "router": {"kind": "sparse_mixer", **router}})


def identity(**router: Any) -> SparseMixer:
    """A gate whose logits are the token itself."""
    made = config(**router).router.build(RouterShape(4, 4, 2), Dropless()).double()
    assert isinstance(made, SparseMixer)
    with torch.no_grad():
        made.weight.copy_(torch.eye(4))
    return made.eval()


def token(*logits: float) -> Tensor:
    return torch.tensor([logits], dtype=torch.float64)


@pytest.mark.parametrize(
    ("logits", "experts", "weights"),
    [
        # First: distances (2 - 1.5) / 2 = 0.25 and (2 - 1) / 2 = 0.5 are near, 3 / 2 is not.
        # Second: of 1.5, 1 and -1, distances 0.5 / 1.5 and 2.5 / 1.5: two are near.
        (
            (2.0, 1.5, 1.0, -1.0),
            [0, 1],
            [1 / (1 + math.exp(-0.5) + math.exp(-1)), 1 / (1 + math.exp(-0.5))],
        ),
        # Below 0 the size is the farther one's: 0.6 / 1.6 near, 3 / 4 and 7 / 8 far.
        # Second: 2.4 / 4 and 6.4 / 8 far, so its share is all.
        ((-4.0, -1.0, -8.0, -1.6), [1, 3], [1 / (1 + math.exp(-0.6)), 1.0]),
        # All alike, as padding is: a fourth, then a third; no 0/0.
        ((0.0, 0.0, 0.0, 0.0), None, [1 / 4, 1 / 3]),
    ],
)
def test_weights_by_hand(
    logits: tuple[float, ...], experts: list[int] | None, weights: list[float]
) -> None:
    routing = identity(tolerance=0.25)(Tokens(token(*logits)))
    assert experts is None or routing.chosen_N.tolist() == experts
    assert len(set(routing.chosen_N.tolist())) == 2
    assert routing.weight_N.tolist() == pytest.approx(weights, rel=1e-12)


def test_training_draws_each_expert_with_its_share() -> None:
    # Shares of 1, 1/e^0.5 and 1/e over their sum: 0.506, 0.307, 0.186; the fourth is far.
    made = identity(tolerance=0.25).train()
    torch.manual_seed(0)
    routing = made(Tokens(token(2.0, 1.5, 1.0, -1.0).expand(DRAWS, 4)))
    first_T, second_T = routing.chosen_N.view(-1, 2).unbind(1)
    share = torch.bincount(first_T, minlength=4).double() / DRAWS
    expected = torch.tensor([2.0, 1.5, 1.0]).double().softmax(0)
    # Three standard deviations of a share of one half are 0.011.
    torch.testing.assert_close(share[:3], expected, rtol=0, atol=0.011)
    assert share[3] == 0
    assert (first_T != second_T).all()


def test_the_likeliest_is_whole_and_a_fourth_of_the_others() -> None:
    made = identity(tolerance=0.25).train()
    torch.manual_seed(0)
    routing = made(Tokens(token(2.0, 1.5, 1.0, -1.0).expand(DRAWS, 4)))
    prob_E = torch.tensor([2.0, 1.5, 1.0]).double().softmax(0)
    first_T, weight_T = routing.chosen_N[::2], routing.weight_N[::2]
    whole_T = torch.isclose(weight_T, prob_E[first_T])
    assert whole_T[first_T == 0].all()
    other_T = ~whole_T
    torch.testing.assert_close(weight_T[other_T], prob_E[first_T[other_T]] / 3)
    # About 10,000 draws: three standard deviations of a share of 1/4 are 0.013.
    assert whole_T[first_T != 0].double().mean().item() == pytest.approx(0.25, abs=0.013)


def test_the_gradient_of_a_weight_is_that_of_its_share() -> None:
    # d p_i / d s_j = p_i ([i = j] - p_j) over the near ones, whatever the forward pass was scaled.
    made = identity(tolerance=0.25).train()
    torch.manual_seed(0)
    x_TD = token(2.0, 1.5, 1.0, -1.0).repeat(30, 1).requires_grad_()
    routing = made(Tokens(x_TD))
    (grad_TD,) = torch.autograd.grad(routing.weight_N[::2].sum(), x_TD)
    prob_E = torch.tensor([2.0, 1.5, 1.0, -torch.inf]).double().softmax(0)
    drawn_T = routing.chosen_N[::2]
    assert len(drawn_T.unique()) == 3
    one_TE = torch.eye(4, dtype=torch.float64)[drawn_T]
    torch.testing.assert_close(grad_TD, prob_E[drawn_T, None] * (one_TE - prob_E))


def test_the_mean_gradient_is_that_of_the_choice_for_a_cubic_loss() -> None:
    # What an expert's share should be worth is the loss with it, L(p_i e_i), over draws i of p:
    # sum_i L(p_i e_i) d p_i. Slopes at p_i e_i (chance 1/4) and p_i e_i / 3 (3/4) give it exactly.
    logits_1E = token(0.3, 0.1, -0.2, 0.5).requires_grad_()
    output_E = torch.tensor([1.0, -2.0, 0.7, 3.0], dtype=torch.float64)

    def loss(y: Tensor) -> Tensor:
        return 0.5 + y - 2 * y**2 + 0.8 * y**3

    prob_1E = logits_1E.softmax(-1)
    worth_E = loss(prob_1E[0].detach() * output_E)
    (wanted,) = torch.autograd.grad((worth_E * prob_1E[0]).sum(), logits_1E, retain_graph=True)
    mean = torch.zeros_like(wanted)
    for expert, output in enumerate(output_E):
        for whole, chance in ((True, 1 / 4), (False, 3 / 4)):
            weight = scaled(prob_1E[:, expert : expert + 1], torch.tensor([[whole]]))
            (found,) = torch.autograd.grad(
                loss(weight * output).sum(), logits_1E, retain_graph=True
            )
            mean += prob_1E[0, expert].detach() * chance * found
    torch.testing.assert_close(mean, wanted)


def test_an_expert_left_out_stays_out() -> None:
    near = near_best(token(-torch.inf, 1.0, 0.9, -3.0), 0.1)
    assert near.tolist() == [[-math.inf, 1.0, 0.9, -math.inf]]


def test_it_draws_twice() -> None:
    for top_k in (1, 3):
        with pytest.raises(ConfigError, match=rf"top_k={top_k} under router kind=sparse_mixer"):
            config(top_k)


def test_a_tolerance_lies_at_0_or_above() -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        config(tolerance=-0.1)
