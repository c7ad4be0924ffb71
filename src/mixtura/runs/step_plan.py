"""A run's number of steps: the number in the recipe, or a corrected number."""

from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field, model_validator

from mixtura.config import Config


class Correction(Config):
    """A new number of steps that was set while the run was training."""

    after: int = Field(ge=0)
    """the last step before the correction"""
    steps: int = Field(ge=1)
    """the new total number of steps"""
    reason: str


class Corrections(Config):
    """The content of a run's steps.json, the earliest correction first."""

    corrections: tuple[Correction, ...] = ()

    @model_validator(mode="after")
    def _in_turn(self) -> Self:
        last = None
        for correction in self.corrections:
            before_the_end = last is None or correction.after < last
            if not before_the_end or correction.steps <= correction.after:
                raise ValueError(f"{correction} comes after the last step, and corrects nothing")
            last = correction.steps
        return self


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The recipe's number of steps, and its corrections; steps count from 1.

    The learning rate's schedule is a function of `place`. A correction stretches or shortens the
    rest of the schedule. So the rate does not jump, and reaches its final value at the last step.
    """

    steps: int
    """the number of steps in the recipe"""
    corrections: tuple[Correction, ...] = ()

    @property
    def last(self) -> int:
        """The number of the last step."""
        return self.corrections[-1].steps if self.corrections else self.steps

    def corrected(self, correction: Correction) -> "StepPlan":
        return replace(self, corrections=(*self.corrections, correction))

    def place(self, step: int) -> float:
        """Return the place of `step` in the recipe's schedule, in steps of that schedule.

        Step 0 has the place 0, and the last step has the place `steps`, even after corrections.
        """
        start, last, place = 0, self.steps, 0.0
        for correction in self.corrections:
            if step <= correction.after:
                break
            place += (self.steps - place) * (correction.after - start) / (last - start)
            start, last = correction.after, correction.steps
        return place + (self.steps - place) * (step - start) / (last - start)
