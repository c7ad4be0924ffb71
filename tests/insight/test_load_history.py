"""Load over time, in as many columns as a picture has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.insight.curves import Counts, Curves
from mixtura.insight.load_history import load_history


def curves_of(*loads: Counts, every: int = 1) -> Curves:
    """A log of one line each `every` steps; `loads` are load_IE, a layer each."""
    empty = Curves.read(Path("no such folder"))
    return replace(empty, step_I=np.arange(1, len(loads[0]) + 1) * every, loads=loads)


def test_lines_are_summed_into_columns() -> None:
    # Two lines a column. [3, 1] + [1, 3] = [4, 4], even: 1 and 1. [8, 0] + [4, 4] = [12, 4]:
    # 12 / 8 = 1.5 and 4 / 8 = 0.5.
    load = np.array([[3, 1], [1, 3], [8, 0], [4, 4]])
    history = load_history(curves_of(load), top_k=1, columns=2)
    assert history.first_step_X.tolist() == [1, 3]
    assert history.last_step_X.tolist() == [2, 4]
    np.testing.assert_allclose(history.layers[0].relative_XE, [[1.0, 1.0], [1.5, 0.5]])
    np.testing.assert_allclose(history.layers[0].max_over_mean_X, [1.0, 1.5])


def test_top_lies_above_the_largest_load_of_any_layer() -> None:
    # Even loads need an axis too: 1.5. In the second layer the busiest of four has all of 60 in
    # one column of 40, 60 over 15 = 4, and the axis ends at 1.08 * 4.
    even = np.full((40, 4), 15)
    peak = np.where(np.arange(40)[:, None] == 7, [60, 0, 0, 0], even)
    assert load_history(curves_of(even), top_k=1, columns=40).top == 1.5
    assert load_history(curves_of(even, peak), top_k=1, columns=40).top == pytest.approx(4.32)


def test_only_the_last_hundred_steps_are_judged() -> None:
    # Logged every 50 steps: 50 and 100 lie within the last 100 of 150 only as 100 and 150.
    load = np.array([[100, 0], [3, 1], [5, 1]])
    history = load_history(curves_of(load, every=50), top_k=1, columns=9)
    assert history.layers[0].recent_E.tolist() == [8, 2]
    # 8 over a mean of 5.
    assert history.layers[0].recent_max_over_mean == 1.6


def test_starving_and_collapsed_are_those_of_moe() -> None:
    # Layer 0: 1 of 100, where even is 25: under 2.5. The busiest has 97 of 100, over 90%.
    # Layer 1 has two experts, and both have their share.
    loads = np.array([[97, 1, 1, 1]]), np.array([[50, 50]])
    first, second = load_history(curves_of(*loads), top_k=1, columns=9).layers
    assert first.starving_E.tolist() == [False, True, True, True]
    assert second.starving_E.tolist() == [False, False]
    assert (first.collapsed, second.collapsed) == (True, False)


def test_a_single_line_is_one_column() -> None:
    history = load_history(curves_of(np.array([[1, 3]])), top_k=1, columns=72)
    assert history.first_step_X.tolist() == history.last_step_X.tolist() == [1]


@given(lines=st.integers(1, 300), columns=st.integers(1, 100))
def test_no_row_is_lost(lines: int, columns: int) -> None:
    load = np.arange(1, 2 * lines + 1).reshape(lines, 2)
    history = load_history(curves_of(load), top_k=1, columns=columns)
    covered = history.last_step_X - history.first_step_X + 1
    assert len(covered) == min(lines, columns)
    assert covered.sum() == lines
    # Even is 1 in every column, so that shares average to 1 over experts.
    assert history.layers[0].relative_XE.mean(-1) == pytest.approx(1.0)
