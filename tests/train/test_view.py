import io
from pathlib import Path

import pytest
from rich.console import Console

from mixtura.train import Alarm, LiveView, PlainView, RunFacts, StepReport, choose_view
from mixtura.train.live_view import load_bar
from mixtura.train.view import duration

FACTS = RunFacts(
    name="tiny",
    folder=Path("runs/tiny"),
    device="cpu",
    steps=10,
    resumed_step=0,
    moe_layers=[1, 3],
    total_parameters=16112,
    active_parameters=13040,
)
ALARM = Alarm("starving", layer=3, experts=(2,), step=5, window=100)


def report(step: int, alarms: tuple[Alarm, ...] = ()) -> StepReport:
    return StepReport(
        step=step,
        loss=2.5,
        losses={"balance": 0.01},
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=1000,
        seconds=0.5,
        load=[[10, 10, 10, 10], [5, 15, 0, 60]],
        dropped=[0.0, 0.25],
        alarms=alarms,
    )


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (3675, "1:01:15")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_load_bar() -> None:
    # Mean 20: shares 1/4, 3/4, 0 and 3 of it; a full column is twice the mean.
    # 8/2 * 0.25 = 1 column, 8/2 * 0.75 = 3, none, and 12 cut to 8.
    bar = load_bar([5, 15, 0, 60], width=10)
    assert bar.plain == "▁▃▁█"
    assert [span.style for span in bar.spans] == ["green", "green", "red", "yellow"]


def test_load_bar_of_more_experts_than_columns() -> None:
    # 6 experts in 3 columns of 2: the busiest shows, and a starving one colours it.
    bar = load_bar([10, 10, 20, 0, 10, 10], width=3)
    assert bar.plain == "▄█▄"
    assert [span.style for span in bar.spans] == ["green", "red", "green"]


def test_load_bar_of_nothing() -> None:
    assert load_bar([0, 0], width=8).plain == "▁▁"


def test_plain_lines() -> None:
    stream = io.StringIO()
    with PlainView(stream) as view:
        view.started(FACTS)
        view.stepped(report(5, alarms=(ALARM,)), logged=False)
        view.stepped(report(10), logged=True)
        view.evaluated(10, 1.25)
    opening, alarm, step, evaluation = stream.getvalue().splitlines()
    assert opening == (
        "tiny: 16,112 parameters, 13,040 active (convention A), 10 steps on cpu, from the start, "
        "into runs/tiny"
    )
    assert alarm == f"ALARM: {ALARM}"
    # 1000 tokens in 0.5 s; the busier layer's 60 over its mean of 20.
    assert step == "step 10/10  loss 2.5000  2,000 tokens/s  0:00 left  load max/mean 3.00"
    assert evaluation == "step 10: held-out 1.2500 bits per byte"


def test_plain_progress_of_the_corpus_is_not_a_flood() -> None:
    stream = io.StringIO()
    with PlainView(stream) as view:
        for done in range(101):
            view.preparing("packing", done, 100)
        view.log("left out blob.bin: binary")
        view.preparing("reading", 5000, 0)
    assert stream.getvalue().splitlines() == [
        "packing: 0%, 0:00 left",
        "packing: done after 0:00",
        "left out blob.bin: binary",
        "reading: 5,000",
        "reading: 5,000, done after 0:00",
    ]


@pytest.mark.parametrize("followed_by", ["a stage", "the run", "the end"])
def test_the_last_plain_line_of_a_stage_says_that_it_ended(followed_by: str) -> None:
    # A stage whose size was a guess ends at 26% of it, a moment after its first line.
    stream = io.StringIO()
    with PlainView(stream) as view:
        view.preparing("tracing", 1, 100)
        view.preparing("tracing", 26, 100)
        if followed_by == "a stage":
            view.preparing("writing", 1, 2)
        elif followed_by == "the run":
            view.started(FACTS)
    first, second = stream.getvalue().splitlines()[:2]
    assert first.startswith("tracing: 1%")
    assert second == "tracing: done after 0:00"


def test_the_last_plain_line_of_a_stage_that_failed_says_how_far_it_came() -> None:
    stream = io.StringIO()
    view = PlainView(stream)
    view.preparing("tracing", 1, 100)
    view.preparing("tracing", 26, 100)
    view.__exit__(ValueError, ValueError("no room"), None)
    shown = [line[:12] for line in stream.getvalue().splitlines()]
    assert shown == ["tracing: 1%,", "tracing: 26%"]


def test_plain_lines_of_a_run_whose_steps_were_corrected() -> None:
    stream = io.StringIO()
    with PlainView(stream) as view:
        view.started(FACTS)
        view.replanned(6)
        view.stepped(report(6), logged=True)
    assert "step 6/6  loss" in stream.getvalue()


def test_live_screen() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, height=30)
    with LiveView(console) as view:
        view.preparing("packing", 50, 100)
        view.started(FACTS)
        view.stepped(report(5, alarms=(ALARM,)), logged=True)
        view.evaluated(5, 1.25)
        view.log("left out blob.bin: binary")
        view.stepped(report(10), logged=True)
    shown = stream.getvalue()
    for part in (
        "step 10/10", "loss 2.5000", "2,000 tokens/s", "0:00 left", "1.2500 bits/byte", "layer 1",
        "layer 3", "max/mean 3.00", "dropped 25.0%", "starving", "left out blob.bin: binary",
    ):  # fmt: skip
        assert part in shown
    assert shown.count("ALARM") == 1


def test_live_screen_shows_the_least_even_layers_that_fit() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, height=7)
    with LiveView(console) as view:
        view.started(FACTS)
        view.stepped(report(10), logged=True)
    shown = stream.getvalue()
    assert "layer 3" in shown
    assert "layer 1" not in shown
    assert "and 1 layers that are more even" in shown


def test_without_a_terminal_lines_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(choose_view(), PlainView)


def test_a_stage_is_shown_as_it_is_named() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with LiveView(console) as view:
        # As markup, [/] closes nothing and is an error.
        view.preparing("writing runs/[/]\x1b[2J", 1, 2)
        view.log("left out [/]\x1b[2J")
    assert "writing runs/[/]␛[2J" in screen.getvalue()
    assert "left out [/]␛[2J" in screen.getvalue()
    plain = io.StringIO()
    PlainView(plain).log("a\x1b[2J\nb" + "x" * 1000)
    assert plain.getvalue().startswith("a␛[2J␊bxxx")
    assert len(plain.getvalue()) == 501
