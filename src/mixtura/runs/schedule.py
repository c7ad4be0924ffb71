"""The learning rate as a function of the step; steps count from 1."""

from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field

from mixtura.config import Config


class CosineConfig(Config):
    """After warm-up, half a cosine wave from the peak rate to `final`, a share of the peak rate."""

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0.1, ge=0, le=1)

    def decay_steps(self, steps: int, warmup: int) -> int:
        return steps - warmup

    def at(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + cos(pi * progress)) / 2


class WSDConfig(Config):
    """Warm-up, stable, decay (arXiv 2404.06395): the peak rate, then a linear decay to `final`.

    The decay takes the last `decay_share` of all steps, and is linear as in arXiv 2405.18392.
    `final` is a share of the peak rate.
    """

    kind: Literal["wsd"] = "wsd"
    decay_share: float = Field(default=0.2, gt=0, le=1)
    final: float = Field(default=0.1, ge=0, le=1)

    def decay_steps(self, steps: int, warmup: int) -> int:
        # If warm-up and decay would overlap, the decay is shortened.
        return min(round(self.decay_share * steps), steps - warmup)

    def at(self, progress: float) -> float:
        return 1 - (1 - self.final) * progress


class ConstantConfig(Config):
    """The peak rate from the end of warm-up on."""

    kind: Literal["constant"] = "constant"

    def decay_steps(self, steps: int, warmup: int) -> int:
        return 0

    def at(self, progress: float) -> float:
        return 1.0


ScheduleConfig = Annotated[CosineConfig | WSDConfig | ConstantConfig, Field(discriminator="kind")]


def share_of_peak(schedule: ScheduleConfig, step: float, warmup: int, steps: int) -> float:
    """The learning rate over the peak rate, at `step` in 0..steps.

    `step` may be a fraction (see `StepPlan.place`). The share rises linearly from 0 to 1 at step
    `warmup`. From then on it follows the schedule, and reaches `final` at the last step.
    """
    if step < warmup:
        return step / warmup
    decay = schedule.decay_steps(steps, warmup)
    into_decay = step - (steps - decay)
    return schedule.at(into_decay / decay) if into_decay > 0 else 1.0
