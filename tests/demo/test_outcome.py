"""The demo's figures by hand."""

import pytest

from mixtura.demo.outcome import seconds_to_reach


def test_seconds_to_reach_lies_on_the_line_between_two_evaluations():
    # 2.0 lies a quarter of the way from 2.1 down to 1.7: 10 + 0.25 * 20 = 15.
    assert seconds_to_reach(2.0, [(5, 3.0), (10, 2.1), (30, 1.7)]) == pytest.approx(15)


def test_a_loss_that_is_reached_at_once_or_never():
    assert seconds_to_reach(2.0, [(5, 1.9), (10, 1.8)]) == 5
    assert seconds_to_reach(2.0, [(5, 3.0), (10, 2.1)]) is None
    assert seconds_to_reach(2.0, []) is None


def test_a_loss_that_rises_in_between_counts_where_it_first_falls_below():
    # From (10, 2.2) to (20, 1.8), half-way: 15. What comes later does not matter.
    assert seconds_to_reach(2.0, [(5, 2.1), (10, 2.2), (20, 1.8), (30, 2.5)]) == pytest.approx(15)
