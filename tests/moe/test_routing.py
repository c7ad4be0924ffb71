"""Routing's own arithmetic, and the local dispatcher. T tokens, N routed rows, D width."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixtura.kernels.permute import COMPACT, Padding
from mixtura.moe.dispatch import dispatch_local
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


class TimesNumber:
    """Expert e multiplies by e + 1; lost rows give 0."""

    def __init__(self, padding: Padding) -> None:
        self.padding = padding

    def padding_for(self, x_TD: Tensor) -> Padding:
        assert x_TD.dim() == 2
        return self.padding

    def __call__(self, x_MD: Tensor, segment_E: Tensor) -> Tensor:
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
    assert TOKEN_CHOICE.lost_N.tolist() == [False, False, False, True, False, False, False, False]
    without_mask = replace(TOKEN_CHOICE, valid_T=None)
    assert without_mask.valid_N is None
    assert without_mask.lost_N.tolist() == [False, False, False, True, False, False, True, True]


def test_expert_choice_knows_its_tokens_by_the_probabilities() -> None:
    assert EXPERT_CHOICE.num_tokens == 3
    assert EXPERT_CHOICE.sequence_N.tolist() == [0, 0, 0]


@pytest.mark.parametrize("padding", PADDINGS)
def test_dispatch_of_token_choice_by_hand(padding: Padding) -> None:
    # Token 0 (value 1): 0.5 * 1 * 1 + 0.5 * 2 * 1 = 1.5. Token 1 (10): 0.25 * 10 = 2.5, its other
    # row is lost. Token 2 (100): 1 * 300 + 2 * 200 = 700. Padding: 0.
    x_TD = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    out_TD = dispatch_local(x_TD, TOKEN_CHOICE, TimesNumber(padding))
    assert out_TD.tolist() == [[1.5], [2.5], [700], [0]]


@pytest.mark.parametrize("padding", PADDINGS)
def test_dispatch_of_expert_choice_by_hand(padding: Padding) -> None:
    # Token 0 (1): 2 * 1. Token 1: nobody, 0. Token 2 (100): 0.5 * 100 + 3 * 200 = 650.
    x_TD = torch.tensor([[1.0], [10.0], [100.0]])
    assert dispatch_local(x_TD, EXPERT_CHOICE, TimesNumber(padding)).tolist() == [[2], [0], [650]]
