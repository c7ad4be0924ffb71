"""The learning rate as a function of the step; steps count from 1."""

from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field

from mixtura.config import Config


class CosineConfig(Config):
    """After warm-up, half a cosine wave from the peak rate to the share `final` of that rate."""

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0.1, ge=0, le=1)

    def decay_steps(self, steps: int, warmup: int) -> int:
        return steps - warmup

    def at(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + cos(pi * progress)) / 2


class WSDConfig(Config):
    """Warm-up, stable, decay (arXiv 2404.06395): the peak rate, then a linear decay of the rate.

    The decay is linear as in arXiv 2405.18392. It takes the share `decay_share` of all steps, and
    ends at the share `final` of the peak rate.
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
    """Return the learning rate, divided by the peak rate, at `step` in 0..steps.

    `step` need not be a whole number (see `StepPlan.place`). The result rises linearly from 0 at
    step 0 to 1 at step `warmup`. From then on it follows the schedule.
    """
    if step < warmup:
        return step / warmup
    decay = schedule.decay_steps(steps, warmup)
    into_decay = step - (steps - decay)
    return schedule.at(into_decay / decay) if into_decay > 0 else 1.0
