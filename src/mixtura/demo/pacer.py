"""Keeps the demo within its time limit: a pacer corrects the number of steps during training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixtura.train import TrainingRun

# The pacer corrects the number of steps at set points. Between two set points lies a fortieth of
# the steps, which takes some seconds, so that a single slow step has little effect; if it takes
# longer than 20 seconds, the next set point comes after 20 seconds.
SET_POINTS = 40
SECONDS_BETWEEN = 20.0
_FEWEST_BETWEEN = 10
# When the time is up, 10 more steps follow, or fewer if 10 steps take more than 5 seconds, so that
# the learning-rate schedule does not end in a jump.
_LAST_STEPS, _LAST_SECONDS = 10, 5.0
# A correction by less than 5% of the remaining steps is postponed to the next set point.
_TOLERANCE = 0.05


@dataclass
class Pacer:
    """Corrects the number of steps of runs that train in turn, so that the demo ends in time.

    A round is one step of each run. At a set point the pacer computes the mean time of a round
    since the last set point, and changes the number of steps to the number that fits into the
    remaining time, but never above the planned number. A machine that slows training down also
    slows down the work after training, so the time of that work is given in rounds.
    """

    runs: Sequence[TrainingRun]
    clock: Callable[[], float]
    ends: float
    """the end of the whole demo, by `clock`"""
    afterwards: float
    """the time of the last evaluation, the report and the sample, in rounds"""
    first_round_seconds: float
    """seconds of a round at the start, from which the number of steps was planned"""
    overhead: float
    """the factor by which evaluations and checkpoints lengthen a round"""

    def __post_init__(self) -> None:
        plan = self.runs[0].plan
        self._planned = plan.steps
        self._between = max(_FEWEST_BETWEEN, self._planned // SET_POINTS)
        self._seconds, self._done, self._last_check = self._trained(), 0, self.clock()

    def after_round(self) -> None:
        """Correct the number of steps if this is a set point. To be called after each round."""
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
        """The number of steps, finished ones included, that fits; at most the planned number."""
        left = self.ends - self.afterwards * round_seconds - now
        fewest = max(1, min(_LAST_STEPS, int(_LAST_SECONDS / round_seconds)))
        return min(self._planned, done + max(fewest, int(left / (round_seconds * self.overhead))))
