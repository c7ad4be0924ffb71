"""Routing's own arithmetic, and rows brought to their experts. T tokens, N routed rows, D width."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.kernels.permute import COMPACT, Padding
from mixtura.moe.routed_experts import routed_by_segments
from mixtura.moe.routing import Routing, token_rows

# Two sequences of two tokens, the last one padding; two choices each among three experts.
# Token 1's second row found no room.
TOKEN_CHOICE = Routing(
    token_N=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]),
    choice_N=torch.tensor([0, 1] * 4),
    chosen_N=torch.tensor([0, 1, 0, 2, 2, 1, 0, 1]),
    expert_N=torch.tensor([0, 1, 0, 3, 2, 1, 3, 3]),
    weight_N=torch.tensor([0.5, 0.5, 0.25, 0.0, 1.0, 2.0, 0.0, 0.0]),
    logits_TE=None,
    probs_TE=None,
    valid_T=torch.tensor([True, True, True, False]),
    num_experts=3,
    num_sequences=2,
    top_k=2,
)
# Expert 0 chose tokens 2 and 0, expert 1 chose 2 as well; nobody chose token 1.
EXPERT_CHOICE = Routing(
    token_N=torch.tensor([2, 0, 2]),
    choice_N=torch.tensor([0, 0, 1]),
    chosen_N=torch.tensor([0, 0, 1]),
    expert_N=torch.tensor([0, 0, 1]),
    weight_N=torch.tensor([0.5, 2.0, 3.0]),
    logits_TE=None,
    probs_TE=torch.full((3, 2), 0.5),
    valid_T=None,
    num_experts=2,
)


PADDINGS = [COMPACT, Padding(4), Padding(3, 9.0)]


def times_number(x_MD: Tensor, segment_E: Tensor) -> Tensor:
    """Expert e multiplies by e + 1; dropped rows give 0."""
    factors = torch.arange(1, len(segment_E) + 1).repeat_interleave(segment_E)
    y_MD = torch.zeros_like(x_MD)
    y_MD[: len(factors)] = x_MD[: len(factors)] * factors[:, None]
    return y_MD


def test_token_rows() -> None:
    token_N, choice_N = token_rows(2, 3, torch.device("cpu"))
    assert token_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert choice_N.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_is_derived() -> None:
    assert TOKEN_CHOICE.num_tokens == 4
    assert TOKEN_CHOICE.sequence_N.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert TOKEN_CHOICE.valid_N is not None
    assert TOKEN_CHOICE.valid_N.tolist() == [True] * 6 + [False] * 2
    assert TOKEN_CHOICE.dropped_N.tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    without_mask = replace(TOKEN_CHOICE, valid_T=None)
    assert without_mask.valid_N is None
    assert without_mask.dropped_N.tolist() == [False, False, False, True, False, False, True, True]


def test_expert_choice_knows_its_tokens_by_the_probabilities() -> None:
    assert EXPERT_CHOICE.num_tokens == 3
    assert EXPERT_CHOICE.sequence_N.tolist() == [0, 0, 0]


@pytest.mark.parametrize("padding", PADDINGS)
def test_routed_by_segments_of_token_choice_by_hand(padding: Padding) -> None:
    # Token 0 (value 1): 0.5 * 1 * 1 + 0.5 * 2 * 1 = 1.5. Token 1 (10): 0.25 * 10 = 2.5, its other
    # row is lost. Token 2 (100): 1 * 300 + 2 * 200 = 700. Padding: 0.
    x_TD = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    out_TD = routed_by_segments(x_TD, TOKEN_CHOICE, padding, times_number)
    assert out_TD.tolist() == [[1.5], [2.5], [700], [0]]


@pytest.mark.parametrize("padding", PADDINGS)
def test_routed_by_segments_of_expert_choice_by_hand(padding: Padding) -> None:
    # Token 0 (1): 2 * 1. Token 1: nobody, 0. Token 2 (100): 0.5 * 100 + 3 * 200 = 650.
    x_TD = torch.tensor([[1.0], [10.0], [100.0]])
    out_TD = routed_by_segments(x_TD, EXPERT_CHOICE, padding, times_number)
    assert out_TD.tolist() == [[2], [0], [650]]


def test_of_choices_computes_neither_padding_nor_unused_rows() -> None:
    # Token 0 has experts 1 and 0; token 1 expert 2, and none; token 2 is padding.
    routing = Routing.of_choices(
        torch.tensor([[1, 0], [2, 3], [0, 1]]),
        torch.tensor([[0.75, 0.25], [1.0, 0.5], [0.5, 0.5]]),
        3,
        dropped_TK=torch.tensor([[False, True], [False, False], [False, False]]),
        valid_T=torch.tensor([True, True, False]),
    )
    assert routing.chosen_N.tolist() == [1, 0, 2, 3, 0, 1]
    assert routing.expert_N.tolist() == [1, 3, 2, 3, 3, 3]
    assert routing.weight_N.tolist() == [0.75, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert routing.token_N.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"choice_N": torch.tensor([0, 1])}, "every tensor of rows has N entries"),
        ({"token_N": torch.tensor([0, 0, 1, 1, 2, 2, 3, 4])}, "tokens lie in 0..T-1"),
        ({"chosen_N": torch.tensor([0, 1, 0, 4, 2, 1, 0, 1])}, "chosen experts lie in 0..E"),
        ({"expert_N": torch.tensor([0, 1, 0, -1, 2, 1, 3, 3])}, "computing experts lie in 0..E"),
        ({"weight_N": torch.ones(8)}, "a row that no expert computes weighs 0"),
        ({"valid_T": torch.tensor([True, True, False, False])}, "padding is computed by no expert"),
        ({"token_N": torch.tensor([0, 1, 0, 1, 2, 2, 3, 3])}, "row n is choice n % K of token"),
        ({"num_sequences": 3}, "sequences are of equal length"),
        ({"probs_TE": torch.ones(4, 3)}, "each token's probabilities sum to 1"),
    ],
)
def test_a_routing_that_breaks_a_rule_is_not_made(changed: dict[str, Any], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        replace(TOKEN_CHOICE, **changed)
