"""What a run shows while it trains: nothing, plain lines, or (live.py) a live screen."""

import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self, TextIO

from mixtura.train.step_report import StepReport

_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What stays the same throughout a run."""

    name: str
    folder: Path
    device: str
    steps: int
    resumed_step: int
    """0 for a run from the start"""
    moe_layers: list[int]
    """the blocks that hold an MoE, in the order of `StepReport.load`"""
    total_parameters: int
    active_parameters: int
    """convention A"""


class View:
    """Shows nothing. A subclass shows what it overrides; every call comes from one thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def preparing(self, stage: str, done: int, total: int) -> None:
        """The corpus is on its way; `total` is 0 where nobody knows."""

    def started(self, facts: RunFacts) -> None: ...

    def stepped(self, report: StepReport, *, logged: bool) -> None: ...

    def evaluated(self, step: int, bits_per_byte: float) -> None: ...

    def told(self, line: str) -> None:
        """A sentence that must not be lost: a resume, a file left out, a stop."""


class Pace:
    """Time left, from the steps of this process, evaluation and checkpoints included."""

    def __init__(self, facts: RunFacts) -> None:
        self.facts, self._began = facts, monotonic()

    def left(self, step: int) -> float:
        """Seconds until the last step, as things go."""
        done = step - self.facts.resumed_step
        return (monotonic() - self._began) / done * (self.facts.steps - step)


class PlainView(View):
    """A line for each logged step, evaluation and alarm: for logs, and where no terminal is."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._pace: Pace | None = None
        self._stage, self._stage_began, self._next_line = "", 0.0, 0.0

    def preparing(self, stage: str, done: int, total: int) -> None:
        now = monotonic()
        if stage != self._stage:
            self._stage, self._stage_began = stage, now
        elif now < self._next_line:
            return
        self._next_line = now + _SECONDS_BETWEEN_LINES
        left = (now - self._stage_began) / done * (total - done) if done else 0.0
        shown = f"{done / total:.0%}, {duration(left)} left" if total else f"{done:,}"
        self.told(f"{stage}: {shown}")

    def started(self, facts: RunFacts) -> None:
        self._pace = Pace(facts)
        self.told(opening(facts))

    def stepped(self, report: StepReport, *, logged: bool) -> None:
        assert self._pace is not None, "a run starts before it steps"
        if logged:
            busiest = f"  load max/mean {max(report.max_over_mean):.2f}" if report.load else ""
            self.told(
                f"step {report.step}/{self._pace.facts.steps}  loss {report.loss:.4f}  "
                f"{report.tokens_per_second:,.0f} tokens/s  "
                f"{duration(self._pace.left(report.step))} left{busiest}"
            )
        for alarm in report.alarms:
            self.told(f"ALARM: {alarm}")

    def evaluated(self, step: int, bits_per_byte: float) -> None:
        self.told(f"step {step}: held-out {bits_per_byte:.4f} bits per byte")

    def told(self, line: str) -> None:
        self._stream.write(f"{line}\n")
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
