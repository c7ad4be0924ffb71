"""Which experts domains and tokens go to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.insight.specialisation import Specialisation, specialisation, telling_tokens


def test_counts_by_domain_and_expert() -> None:
    # The last token has no expert.
    domains, first = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, -1])
    assert specialisation(domains, first, 3, 2).counts_DE.tolist() == [[1, 1], [0, 2], [0, 0]]


def test_lift_is_the_domains_share_over_the_experts() -> None:
    # Domain 0 has 3 of 4 with expert 0, all tokens 4 of 8: 0.75 / 0.5 = 1.5.
    one = Specialisation(np.array([[3, 1], [1, 3], [0, 0]]))
    np.testing.assert_allclose(one.share_DE[:2], [[0.75, 0.25], [0.25, 0.75]])
    np.testing.assert_allclose(one.share_E, [0.5, 0.5])
    np.testing.assert_allclose(one.lift_DE[:2], [[1.5, 0.5], [0.5, 1.5]])
    assert np.isnan(one.share_DE[2]).all()


def test_information_of_experts_that_settle_the_domain() -> None:
    # Two domains of equal size, each with an expert of its own: one bit, which is all there is.
    one = Specialisation(np.array([[8, 0], [0, 8]]))
    assert one.information == pytest.approx(1.0)
    assert one.domain_entropy == pytest.approx(1.0)


@given(sizes=st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_information_is_zero_where_domains_make_no_difference(sizes: list[int]) -> None:
    counts = np.outer(sizes, [1, 2, 3])
    assert Specialisation(counts).information == pytest.approx(0.0, abs=1e-9)


def test_telling_tokens_are_those_beyond_even() -> None:
    # Token 7 goes to expert 0 nine times of ten, token 8 to expert 1; token 9 to both alike.
    tokens = np.repeat([7, 7, 8, 9, 9], [9, 1, 10, 5, 5])
    first = np.repeat([0, 1, 1, 0, 1], [9, 1, 10, 5, 5])
    # Expert 0 has 14 of 30 rows: token 9 would even out at 4.67, and 5 is a little more.
    assert telling_tokens(tokens, first, 3, 6) == [[7, 9], [8], []]
    assert telling_tokens(tokens, first, 2, 1) == [[7], [8]]


def test_a_rare_token_tells_nothing() -> None:
    tokens, first = np.array([1, 1, 1, 1, *[2] * 9]), np.array([0, 0, 0, 0, *[1] * 9])
    assert telling_tokens(tokens, first, 2, 6) == [[], [2]]
