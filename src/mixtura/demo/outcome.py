"""The result of the demo, which can also be given as JSON and as a table."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class TwinOutcome:
    """The final figures of one of the two models."""

    total_parameters: int
    active_parameters: int
    """by convention A, which counts every weight that one token uses"""
    flops_per_token: int
    """of a forward pass; a multiply-add counts as 2, and attention covers the training length"""
    tokens_per_second: float
    """the speed of training steps, without evaluations and checkpoints"""
    heldout_bits_per_byte: float
    learning_rate: float
    training_seconds: float
    """the time of this model's training steps, without evaluations and checkpoints"""
    load_max_over_mean: list[float] | None = None
    """the largest load of an expert over the mean load, for each layer, over the last 100 steps;
    None for the dense twin"""
    seconds_to_dense_loss: float | None = None
    """training seconds until the held-out loss falls to the dense twin's final held-out loss; None
    if the loss never does"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The demo's result."""

    moe: TwinOutcome
    dense: TwinOutcome
    steps: int
    """the number of steps of each twin"""
    steps_planned: int
    """the number of steps that was planned from the speed at the start"""
    cut_because: str | None
    """the reason for taking fewer steps than planned; None if all planned steps were taken"""
    tokens: int
    sample: str
    report: Path
    seconds: float
    """the whole demo, from the first file to the report"""

    @property
    def gain(self) -> float:
        """How far the MoE's held-out bits per byte are below the dense twin's: 0.05 means 5%."""
        return 1 - self.moe.heldout_bits_per_byte / self.dense.heldout_bits_per_byte

    @property
    def speed_ratio(self) -> float:
        return self.moe.tokens_per_second / self.dense.tokens_per_second

    @property
    def cut(self) -> str | None:
        """A sentence on the number of cut steps and the reason; None if no steps were cut."""
        if self.cut_because is None:
            return None
        return (
            f"{self.steps_planned - self.steps:,} of {self.steps_planned:,} steps were cut, to end "
            f"within six minutes: {self.cut_because}"
        )

    def tree(self) -> dict[str, Any]:
        """Plain data for JSON."""
        dense = asdict(self.dense)
        del dense["load_max_over_mean"], dense["seconds_to_dense_loss"]
        return {
            **asdict(self),
            "dense": dense,
            "report": str(self.report),
            "gain": self.gain,
            "speed_ratio": self.speed_ratio,
        }

    def table(self) -> Table:
        """A table of both models' figures, and of the MoE's figures divided by the dense twin's."""
        moe, dense = self.moe, self.dense
        reached = moe.seconds_to_dense_loss
        table = Table(title=f"After the same {self.tokens:,} tokens of the standard library")
        for heading in ("", "MoE", "dense twin", "MoE / twin"):
            table.add_column(heading, justify="right" if heading else "left")
        figures = {
            "total parameters": ("total_parameters", ",.0f"),
            "active parameters (A)": ("active_parameters", ",.0f"),
            "FLOPs per token": ("flops_per_token", ",.0f"),
            "tokens per second": ("tokens_per_second", ",.0f"),
            "held-out bits per byte": ("heldout_bits_per_byte", ".4f"),
        }
        for name, (figure, form) in figures.items():
            left, right = asdict(moe)[figure], asdict(dense)[figure]
            table.add_row(name, format(left, form), format(right, form), f"{left / right:.3f}")
        table.add_row(
            "seconds to the twin's loss",
            "not reached" if reached is None else f"{reached:.0f}",
            f"{dense.training_seconds:.0f}",
            "" if reached is None else f"{reached / dense.training_seconds:.3f}",
        )
        return table


def seconds_to_reach(target: float, evaluations: list[tuple[float, float]]) -> float | None:
    """Seconds at which the loss first falls to `target`; None if it never does.

    Between two evaluations (seconds, loss), the loss is interpolated linearly.
    """
    before: tuple[float, float] | None = None
    for seconds, loss in evaluations:
        if loss <= target:
            if before is None or before[1] == loss:
                return seconds
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (seconds - before[0])
        before = (seconds, loss)
    return None
