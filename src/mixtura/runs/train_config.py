"""The settings of training: steps, batch, optimizer, precision, and how often files are written.

This module does not import torch.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from mixtura.config import Config
from mixtura.runs.schedule import CosineConfig, ScheduleConfig, share_of_peak


class TrainConfig(Config):
    """The `train` section of a recipe. Keys that end in `_every` are intervals in steps."""

    steps: int = Field(ge=1, le=2**40)
    # A step has `accumulation` micro-batches, each of `batch` sequences of `length` tokens.
    batch: int = Field(ge=1, le=2**20)
    length: int = Field(ge=1, le=2**24)
    accumulation: int = Field(default=1, ge=1, le=2**20)

    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    # The learning rate of router gates, as a multiple of `lr`. In a step AdamW changes each weight
    # by about the learning rate, and a logit sums `width` products with weights. So a rate that
    # suits experts can change every choice of a new router within a few steps.
    router_lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    warmup: int = Field(default=0, ge=0)
    schedule: ScheduleConfig = CosineConfig()
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    # Gradients are clipped if their total norm is above this; null: no clipping.
    clip: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)

    # With bfloat16, matrix products run under autocast; weights, moments and routers stay fp32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)
    # The number of CPU threads; null: torch's default. The number affects how sums are rounded.
    threads: int | None = Field(default=None, ge=1, le=1024)

    eval_every: int = Field(default=500, ge=1)
    eval_tokens: int = Field(default=65536, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(
                f"warmup={self.warmup} must lie in 0..steps={self.steps}; "
                "lower warmup or train for more steps"
            )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas={list(self.betas)} must each lie in 0..1, 1 left out")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length * self.accumulation

    def learning_rate(self, step: float) -> float:
        """Return the learning rate at `step`, which need not be whole: see `StepPlan.place`."""
        return self.lr * share_of_peak(self.schedule, step, self.warmup, self.steps)
