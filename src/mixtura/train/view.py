"""Views, which show a run's progress: one shows nothing, and one writes plain lines.

The view with a live screen is in `live_view.py`.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from mixtura.terminal_text import visible_line

if TYPE_CHECKING:
    from mixtura.train.step_report import StepReport

_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about a run that are known when it starts."""

    name: str
    folder: Path
    device: str
    steps: int
    resumed_step: int
    """the step of the checkpoint from which the run continues; 0 for a new run"""
    moe_layers: list[int]
    """the numbers of the blocks with an MoE, in the order of `StepReport.load`"""
    total_parameters: int
    active_parameters: int
    """by convention A: the input embedding and the head are counted"""


class View:
    """Shows nothing; a subclass overrides the methods for what it shows.

    All methods are called in one thread.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def preparing(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage before training; `total` is 0 if it is unknown."""

    def started(self, facts: RunFacts) -> None: ...

    def replanned(self, steps: int) -> None:
        """Show that the run's total number of steps is now `steps`."""

    def stepped(self, report: "StepReport", *, logged: bool) -> None: ...

    def evaluated(self, step: int, bits_per_byte: float) -> None: ...

    def log(self, line: str) -> None:
        """Show a line that the user must see, such as one about a resume or a file left out."""


class Pace:
    """Estimates the time left.

    The estimate uses the mean time of the steps since this process started the run; evaluations and
    checkpoints are included in this time.
    """

    def __init__(self, facts: RunFacts) -> None:
        self.facts, self._began = facts, monotonic()

    def replan(self, steps: int) -> None:
        self.facts = replace(self.facts, steps=steps)

    def left(self, step: int) -> float:
        """Seconds until the last step, at the average pace so far."""
        done = step - self.facts.resumed_step
        return (monotonic() - self._began) / done * (self.facts.steps - step)


class _Stage:
    """One stage of the preparation; it selects which reports of its progress become lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._began = self._next_line = monotonic()
        self._unsaid: str | None = None
        self._count = ""
        self._ended = False

    def reached(self, done: int, total: int) -> str | None:
        """Return the line to write: None within 5 s of the last line, and after the stage's end."""
        if self._ended:
            return None
        if total and done >= total:
            return self._end()
        now = monotonic()
        left = (now - self._began) / done * (total - done) if done else 0.0
        self._count = "" if total else f"{done:,}, "
        self._unsaid = f"{done / total:.0%}, {duration(left)} left" if total else f"{done:,}"
        if now < self._next_line:
            return None
        self._next_line = now + _SECONDS_BETWEEN_LINES
        line, self._unsaid = f"{self.name}: {self._unsaid}", None
        return line

    def last_line(self, *, ended: bool) -> str | None:
        """Return the last line of a stage that ended or was interrupted.

        Returns None if that line is already written.
        """
        if ended:
            return None if self._ended else self._end()
        return None if self._unsaid is None else f"{self.name}: {self._unsaid}"

    def _end(self) -> str:
        self._ended = True
        return f"{self.name}: {self._count}done after {duration(monotonic() - self._began)}"


class PlainView(View):
    """Writes a line for each logged step, evaluation and alarm, also where there is no terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._pace: Pace | None = None
        self._stage: _Stage | None = None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._leave_stage(ended=kind is None)

    def preparing(self, stage: str, done: int, total: int) -> None:
        if self._stage is None or self._stage.name != stage:
            self._leave_stage(ended=True)
            self._stage = _Stage(stage)
        line = self._stage.reached(done, total)
        if line is not None:
            self.log(line)

    def _leave_stage(self, *, ended: bool) -> None:
        """End the stage, and write its last line, even within 5 s of the line before."""
        line = None if self._stage is None else self._stage.last_line(ended=ended)
        self._stage = None
        if line is not None:
            self.log(line)

    def started(self, facts: RunFacts) -> None:
        self._leave_stage(ended=True)
        self._pace = Pace(facts)
        self.log(opening(facts))

    def replanned(self, steps: int) -> None:
        assert self._pace is not None, "a run starts before it is corrected"
        self._pace.replan(steps)

    def stepped(self, report: "StepReport", *, logged: bool) -> None:
        assert self._pace is not None, "a run starts before it steps"
        if logged:
            busiest = f"  load max/mean {max(report.max_over_mean):.2f}" if report.load else ""
            self.log(
                f"step {report.step}/{self._pace.facts.steps}  loss {report.loss:.4f}  "
                f"{report.tokens_per_second:,.0f} tokens/s  "
                f"{duration(self._pace.left(report.step))} left{busiest}"
            )
        for alarm in report.alarms:
            self.log(f"ALARM: {alarm}")

    def evaluated(self, step: int, bits_per_byte: float) -> None:
        self.log(f"step {step}: held-out {bits_per_byte:.4f} bits per byte")

    def log(self, line: str) -> None:
        self._stream.write(f"{visible_line(line)}\n")
        self._stream.flush()


def opening(facts: RunFacts) -> str:
    begin = f"from step {facts.resumed_step}" if facts.resumed_step else "from the start"
    return (
        f"{facts.name}: {facts.total_parameters:,} parameters, {facts.active_parameters:,} active "
        f"(convention A), {facts.steps} steps on {facts.device}, {begin}, into {facts.folder}"
    )


def duration(seconds: float) -> str:
    """75 -> 1:15; 3675 -> 1:01:15"""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
