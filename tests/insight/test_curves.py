"""Logs read back, smoothed and compared."""

import json
from pathlib import Path

import numpy as np
import pytest

from mixtura.errors import DataError
from mixtura.insight.curves import Curves, reached, running_mean


def line(step: int, **more: object) -> str:
    row = {"step": step, "tokens": 10 * step, "seconds": 0.5 * step, "loss": 5.0 - step}
    return json.dumps({**row, "tokens_per_second": 20.0, "load": [[3, 1]], **more}) + "\n"


def test_a_log_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(line(1) + line(2, load=[[2, 2]]))
    (tmp_path / "eval.jsonl").write_text('{"tokens": 20, "heldout_bits_per_byte": 2.5}\n')
    curves = Curves.read(tmp_path)
    assert curves.step_I.tolist() == [1, 2]
    assert curves.loss_I.tolist() == [4.0, 3.0]
    assert [load_IE.tolist() for load_IE in curves.loads] == [[[3, 1], [2, 2]]]
    assert curves.bits_per_byte_J.tolist() == [2.5]


def test_a_run_that_wrote_nothing_yet_is_empty(tmp_path: Path) -> None:
    curves = Curves.read(tmp_path)
    assert curves.step_I.shape == curves.eval_seconds_J.shape == (0,)
    assert curves.loads == ()


def test_the_load_of_a_dense_decoder_is_empty(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(line(1, load=[]) + line(2, load=[]))
    assert Curves.read(tmp_path).loads == ()


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(line(1) + line(2)[:-20])
    assert Curves.read(tmp_path).step_I.tolist() == [1]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(line(1) + "{oops\n" + line(3))
    with pytest.raises(DataError, match=r"log\.jsonl: line 2: is not JSON"):
        Curves.read(tmp_path)


def test_layers_may_have_different_numbers_of_experts(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        line(1, load=[[3, 1], [2, 1, 1]]) + line(2, load=[[2, 2], [0, 0, 4]])
    )
    loads = [load_IE.tolist() for load_IE in Curves.read(tmp_path).loads]
    assert loads == [[[3, 1], [2, 2]], [[2, 1, 1], [0, 0, 4]]]


@pytest.mark.parametrize("load", [[[1, 1, 1]], [[3, 1], [3, 1]], []])
def test_loads_of_two_shapes_are_refused(tmp_path: Path, load: list[list[int]]) -> None:
    (tmp_path / "log.jsonl").write_text(line(1) + line(2, load=load))
    with pytest.raises(DataError, match="another shape"):
        Curves.read(tmp_path)


def test_the_time_of_an_evaluation_lies_between_log_lines(tmp_path: Path) -> None:
    # Logged at 10 tokens, 0.5 s, and 20 tokens, 1 s. At 5 tokens: 0.25 s; at 15: 0.75 s; at 30
    # nobody knows.
    (tmp_path / "log.jsonl").write_text(line(1) + line(2))
    rows = [{"tokens": t, "heldout_bits_per_byte": 1.0} for t in (5, 15, 20, 30)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seconds = Curves.read(tmp_path).eval_seconds_J
    np.testing.assert_allclose(seconds, [0.25, 0.75, 1.0, np.nan])


def test_running_mean() -> None:
    # Window 3: (1+2)/2, (1+2+6)/3, (2+6)/2 at the right end.
    mean = running_mean(np.array([1.0, 2.0, 6.0]), 3)
    np.testing.assert_allclose(mean, [1.5, 3.0, 4.0])


def test_running_mean_leaves_absent_values_out() -> None:
    # (1)/1, (1+5)/2, (5)/1; nothing at all gives nothing.
    mean = running_mean(np.array([1.0, np.nan, 5.0]), 3)
    np.testing.assert_allclose(mean, [1.0, 3.0, 5.0])
    assert np.isnan(running_mean(np.array([np.nan]), 3)).all()


def test_where_a_curve_comes_down_to_a_target() -> None:
    # From 4 at 10 to 2 at 30: 3 is half-way, at 20.
    tokens, bits = np.array([10, 30, 40]), np.array([4.0, 2.0, 1.5])
    assert reached(tokens, bits, 3.0) == 20.0
    assert reached(tokens, bits, 5.0) == 10.0
    assert reached(tokens, bits, 1.0) is None
