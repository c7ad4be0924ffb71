"""How many steps a run takes: as many as its recipe says, or another number since some step."""

from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field, model_validator

from mixtura.config import Config


class Correction(Config):
    """Another number of steps, taken while the run was under way."""

    after: int = Field(ge=0)
    """the last step that was taken before"""
    steps: int = Field(ge=1)
    """how many there are in all since then"""
    reason: str


class Corrections(Config):
    """The content of a run's steps.json, the earliest first."""

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
    """The recipe's steps and what became of them; steps count from 1.

    The schedule of the learning rate is a function of `place`. A correction stretches what is left
    of the schedule, or squeezes it, so that the rate never jumps and still reaches its end at the
    last step.
    """

    steps: int
    """of the recipe"""
    corrections: tuple[Correction, ...] = ()

    @property
    def last(self) -> int:
        """The number of the last step."""
        return self.corrections[-1].steps if self.corrections else self.steps

    def corrected(self, correction: Correction) -> "StepPlan":
        return replace(self, corrections=(*self.corrections, correction))

    def place(self, step: int) -> float:
        """Where `step` stands among the recipe's own steps: at all of them for the last step."""
        start, last, place = 0, self.steps, 0.0
        for correction in self.corrections:
            if step <= correction.after:
                break
            place += (self.steps - place) * (correction.after - start) / (last - start)
            start, last = correction.after, correction.steps
        return place + (self.steps - place) * (step - start) / (last - start)
