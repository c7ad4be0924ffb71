"""The learning rate as a function of the step; steps count from 1."""

from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field

from mixtura.config import Config


class CosineConfig(Config):
    """Half a cosine from the peak after warm-up down to `final`, a share of the peak."""

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0.1, ge=0, le=1)

    def decay_steps(self, steps: int, warmup: int) -> int:
        return steps - warmup

    def at(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + cos(pi * progress)) / 2


class WSDConfig(Config):
    """Warm-up, stable, decay (arXiv 2404.06395): the peak, then a straight line to `final`.

    The line takes the last `decay_share` of all steps (straight as in arXiv 2405.18392).
    """

    kind: Literal["wsd"] = "wsd"
    decay_share: float = Field(default=0.2, gt=0, le=1)
    final: float = Field(default=0.1, ge=0, le=1)

    def decay_steps(self, steps: int, warmup: int) -> int:
        # The warm-up has precedence where the two overlap.
        return min(round(self.decay_share * steps), steps - warmup)

    def at(self, progress: float) -> float:
        return 1 - (1 - self.final) * progress


class ConstantConfig(Config):
    """The peak from the end of the warm-up on."""

    kind: Literal["constant"] = "constant"

    def decay_steps(self, steps: int, warmup: int) -> int:
        return 0

    def at(self, progress: float) -> float:
        return 1.0


ScheduleConfig = Annotated[CosineConfig | WSDConfig | ConstantConfig, Field(discriminator="kind")]


def share_of_peak(schedule: ScheduleConfig, step: float, warmup: int, steps: int) -> float:
    """lr / peak at `step` in 0..steps; the step may be a fraction (see `StepPlan.place`).

    The share rises in a straight line over `warmup` steps and reaches 1 at step `warmup`; the
    schedule follows, and reaches its `final` at the last step.
    """
    if step < warmup:
        return step / warmup
    decay = schedule.decay_steps(steps, warmup)
    into_decay = step - (steps - decay)
    return schedule.at(into_decay / decay) if into_decay > 0 else 1.0
