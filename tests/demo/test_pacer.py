"""How many steps fit, by hand: runs that do what they are told, and a clock that is set."""

from dataclasses import dataclass, field
from typing import cast

from mixtura.demo.pacer import Pacer
from mixtura.runs.step_plan import Correction, StepPlan
from mixtura.train import TrainingRun


@dataclass
class Paper:
    """A run on paper: steps and seconds are what the test says."""

    plan: StepPlan
    seconds: float = 0.0
    done: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def steps_left(self) -> int:
        return self.plan.last - self.done

    def correct(self, steps: int, reason: str) -> None:
        self.reasons.append(reason)
        self.plan = self.plan.corrected(Correction(after=self.done, steps=steps, reason=reason))


class Day:
    """Two twins of which each step takes half a second at first, 400 steps, 424 s in all."""

    def __init__(self, limit: float = 460.0, steps: int = 400, afterwards: float = 20.0) -> None:
        self.now = 0.0
        self.twins = [Paper(StepPlan(steps)), Paper(StepPlan(steps))]
        runs = cast(list[TrainingRun], self.twins)
        self.pacer = Pacer(
            runs, lambda: self.now, limit, afterwards, first_round_seconds=1.0, overhead=1.06
        )

    def rounds(self, count: int, seconds: float) -> None:
        """As many steps of both, of which each takes as long and 6% more around it."""
        for _ in range(count):
            for twin in self.twins:
                twin.done += 1
                twin.seconds += seconds / 2
            self.now += 1.06 * seconds
            if self.twins[0].steps_left:
                self.pacer.after_round()

    @property
    def last(self) -> int:
        ours, theirs = (twin.plan.last for twin in self.twins)
        assert ours == theirs
        return ours


def test_a_day_as_planned_changes_nothing() -> None:
    day = Day()
    day.rounds(400, 1.0)
    assert (day.last, day.twins[0].reasons) == (400, [])


def test_a_slow_stretch_cuts_what_no_longer_fits() -> None:
    day = Day()
    day.rounds(100, 1.0)
    # 106 s are over. Seven steps of 3 s with 6% more take 22.26 s, over 20 s; what comes afterwards
    # takes as long as 20 steps, 60 s. (460 - 60 - 128.26) / (3 * 1.06) = 85.45, so 107 + 85.
    day.rounds(7, 3.0)
    assert day.last == 192
    assert day.twins[0].reasons == [
        "a step of both twins took 3000 ms around step 107, and 1000 ms at the start"
    ]


def test_it_ends_in_time_whatever_comes() -> None:
    # Slow from a third to five sixths of the time, as by two busy processes.
    day = Day()
    while day.twins[0].steps_left:
        day.rounds(1, 3.0 if 150 < day.now < 380 else 1.0)
    assert day.now <= 460 - 20
    # 150 s undisturbed and 230 s at a third of the speed: 142 + 72 steps of 1.06 and 3.18 s. What
    # could be taken after that is fewer than lie between two looks, or 57 at most.
    assert 214 <= day.last <= 214 + 57


def test_a_spike_is_given_back() -> None:
    day = Day()
    day.rounds(100, 1.0)
    day.rounds(14, 3.0)
    assert day.last < 200
    # A step takes 1 s again: (460 - 20 - 106 - 44.52 - 10.6) / 1.06 = 263.1, and 124 are done.
    day.rounds(10, 1.0)
    assert day.last == 124 + 263


def test_no_more_steps_than_were_planned() -> None:
    day = Day()
    day.rounds(200, 0.1)
    assert (day.last, day.twins[0].reasons) == (400, [])


def test_time_lost_outside_of_steps_is_named_as_such() -> None:
    day = Day()
    day.rounds(100, 1.0)
    day.now += 100
    day.rounds(10, 1.0)
    assert day.last < 400
    assert day.twins[0].reasons == [
        "evaluations, checkpoints and the text took longer than planned"
    ]


def test_the_schedule_keeps_some_steps_to_end_in() -> None:
    # Five seconds: five steps of one second, ten of a tenth, and one that takes longer.
    for rounds, seconds, left in ((10, 1.0, 5), (10, 0.1, 10), (3, 9.0, 1)):
        day = Day(limit=0.0)
        day.rounds(rounds, seconds)
        assert day.last == rounds + left


def test_slow_steps_are_looked_at_by_the_second() -> None:
    # Two steps of 15 s are over 20 s: 31.8 s gone, and 20 steps afterwards will be 300 s.
    day = Day(limit=460.0)
    day.rounds(1, 15.0)
    assert day.last == 400
    day.rounds(1, 15.0)
    # (460 - 300 - 31.8) / (15 * 1.06) = 8.06
    assert day.last == 2 + 8
