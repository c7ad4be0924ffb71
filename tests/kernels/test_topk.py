"""The k best experts. T tokens, E experts, K experts per token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.kernels.topk import MOST_PASSES, topk, topk_naive


def test_by_hand() -> None:
    score_TE = torch.tensor([[0.1, 0.7, 0.2], [3.0, -1.0, -2.0]])
    assert topk(score_TE, 1).tolist() == [[1], [0]]
    assert topk(score_TE, 2).tolist() == [[1, 2], [0, 1]]
    assert topk(score_TE, 3).tolist() == [[1, 2, 0], [0, 1, 2]]


@pytest.mark.parametrize("top_k", range(1, MOST_PASSES + 3))
def test_equals_naive_where_nothing_ties(top_k: int) -> None:
    generator = torch.Generator().manual_seed(top_k)
    score_TE = torch.stack([torch.randperm(9, generator=generator) for _ in range(20)]).double() - 4
    assert torch.equal(topk(score_TE, top_k), topk_naive(score_TE, top_k))
    # Rows of a transposed tensor.
    strided = score_TE.T.contiguous().T
    assert torch.equal(topk(strided, top_k), topk_naive(score_TE, top_k))


@pytest.mark.parametrize("top_k", [1, 2, MOST_PASSES, MOST_PASSES + 1])
def test_the_scores_are_left_as_they_were(top_k: int) -> None:
    score_TE = torch.randn(7, 6)
    before = score_TE.clone()
    topk(score_TE, top_k)
    assert torch.equal(score_TE, before)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5),
    st.integers(1, 6),
)
@settings(max_examples=80, deadline=None)
def test_ties_never_choose_an_expert_twice(scores: list[list[int]], top_k: int) -> None:
    score_TE = torch.tensor(scores, dtype=torch.float32)
    chosen_TK = topk(score_TE, top_k)
    assert chosen_TK.dtype == torch.int64
    for row, chosen in zip(scores, chosen_TK.tolist(), strict=True):
        assert len(set(chosen)) == top_k
        # The best first, and none better left out.
        assert [row[expert] for expert in chosen] == sorted(row, reverse=True)[:top_k]


@pytest.mark.parametrize("top_k", [1, 3, MOST_PASSES + 1])
def test_no_tokens(top_k: int) -> None:
    assert topk(torch.empty(0, 8), top_k).shape == (0, top_k)
