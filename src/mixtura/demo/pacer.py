"""Keeps the demo within its time: how many steps fit, looked at again at set points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixtura.train import Run

# A fortieth of the steps lies between two set points: some seconds, of which one spike is a part.
# Where steps have become slow, so many seconds.
SET_POINTS = 40
SECONDS_BETWEEN = 20.0
_FEWEST_BETWEEN = 10
# What is left of the schedule when time is up, so that its end is no jump.
_LAST_STEPS, _LAST_SECONDS = 10, 5.0
# A smaller change than this share of the steps that are left waits for the next set point.
_TOLERANCE = 0.05


@dataclass
class Pacer:
    """Corrects the steps of runs that train in turn, so that they end in time.

    At a set point it takes the time of a step of all runs since the last one, and corrects the
    number of steps where another one fits into what is left: down, and up again as far as was
    planned. What comes after training slows down as much as training does, so its time is told in
    steps.
    """

    runs: Sequence[Run]
    clock: Callable[[], float]
    ends: float
    """when all must be over, by `clock`"""
    afterwards: float
    """steps of all runs that take as long as the last evaluation, the report and the sample"""
    first_pair: float
    """seconds of a step of all runs by which the steps were planned"""
    overhead: float
    """how much longer a step is with its share of evaluations and checkpoints"""

    def __post_init__(self) -> None:
        plan = self.runs[0].plan
        self._planned = plan.steps
        self._between = max(_FEWEST_BETWEEN, self._planned // SET_POINTS)
        self._seconds, self._done, self._looked = self._trained(), 0, self.clock()

    def after_round(self) -> None:
        """Call when all runs have taken as many steps."""
        run = self.runs[0]
        done = run.plan.last - run.steps_left
        now = self.clock()
        if done - self._done < self._between and now - self._looked < SECONDS_BETWEEN:
            return
        pair = (self._trained() - self._seconds) / (done - self._done)
        self._seconds, self._done, self._looked = self._trained(), done, now
        steps = self._fitting(done, pair, now)
        if abs(steps - run.plan.last) > _TOLERANCE * run.steps_left:
            reason = self._reason(done, pair)
            for each in self.runs:
                each.correct(steps, reason)

    def _trained(self) -> float:
        return sum(run.seconds for run in self.runs)

    def _reason(self, done: int, pair: float) -> str:
        if pair <= (1 + _TOLERANCE) * self.first_pair:
            return "evaluations, checkpoints and the text took longer than planned"
        return (
            f"a step of both twins took {pair * 1000:.0f} ms around step {done:,}, and "
            f"{self.first_pair * 1000:.0f} ms at the start"
        )

    def _fitting(self, done: int, pair: float, now: float) -> int:
        """How many steps there may be in all."""
        left = self.ends - self.afterwards * pair - now
        fewest = max(1, min(_LAST_STEPS, int(_LAST_SECONDS / pair)))
        return min(self._planned, done + max(fewest, int(left / (pair * self.overhead))))
