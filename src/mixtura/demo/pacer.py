"""Keeps the demo within its time: at set points it corrects the number of steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixtura.train import TrainingRun

# Between two set points lies a fortieth of the steps: some seconds, in which one spike weighs
# little. Where steps have become slow, the time between set points is bounded instead.
SET_POINTS = 40
SECONDS_BETWEEN = 20.0
_FEWEST_BETWEEN = 10
# The steps that follow when time is up, so that the schedule does not end in a jump.
_LAST_STEPS, _LAST_SECONDS = 10, 5.0
# A change of a smaller share of the remaining steps waits for the next set point.
_TOLERANCE = 0.05


@dataclass
class Pacer:
    """Corrects the steps of runs that train in turn, so that they end in time.

    A round is one step of each run. At a set point the pacer takes the mean time of a round since
    the last set point, and corrects the number of steps to what fits into the remaining time: down,
    and up again to at most the planned number. What follows training slows down as training does,
    so its time is counted in rounds.
    """

    runs: Sequence[TrainingRun]
    clock: Callable[[], float]
    ends: float
    """the end of the whole demo, by `clock`"""
    afterwards: float
    """rounds that take as long as the last evaluation, the report and the sample"""
    first_round_seconds: float
    """seconds of a round at the start, from which the steps were planned"""
    overhead: float
    """the factor by which evaluations and checkpoints lengthen a round"""

    def __post_init__(self) -> None:
        plan = self.runs[0].plan
        self._planned = plan.steps
        self._between = max(_FEWEST_BETWEEN, self._planned // SET_POINTS)
        self._seconds, self._done, self._last_check = self._trained(), 0, self.clock()

    def after_round(self) -> None:
        """Call after each round."""
        run = self.runs[0]
        done = run.plan.last - run.steps_left
        now = self.clock()
        if done - self._done < self._between and now - self._last_check < SECONDS_BETWEEN:
            return
        round_seconds = (self._trained() - self._seconds) / (done - self._done)
        self._seconds, self._done, self._last_check = self._trained(), done, now
        steps = self._steps_that_fit(done, round_seconds, now)
        if abs(steps - run.plan.last) > _TOLERANCE * run.steps_left:
            reason = self._reason(done, round_seconds)
            for each in self.runs:
                each.correct(steps, reason)

    def _trained(self) -> float:
        return sum(run.seconds for run in self.runs)

    def _reason(self, done: int, round_seconds: float) -> str:
        if round_seconds <= (1 + _TOLERANCE) * self.first_round_seconds:
            return "evaluations, checkpoints and the text took longer than planned"
        return (
            f"a step of both twins took {round_seconds * 1000:.0f} ms around step {done:,}, and "
            f"{self.first_round_seconds * 1000:.0f} ms at the start"
        )

    def _steps_that_fit(self, done: int, round_seconds: float, now: float) -> int:
        """The total number of steps that fits."""
        left = self.ends - self.afterwards * round_seconds - now
        fewest = max(1, min(_LAST_STEPS, int(_LAST_SECONDS / round_seconds)))
        return min(self._planned, done + max(fewest, int(left / (round_seconds * self.overhead))))
