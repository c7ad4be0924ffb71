"""How RoPE is stretched beyond the context that a model was trained on. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mixtura.config import Config


class LinearScaling(Config):
    """Positions are divided by `factor` (position interpolation, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0, allow_inf_nan=False)


class Llama3Scaling(Config):
    """Long waves are slowed by `factor`, short ones kept, a band between them blended (Llama 3.1).

    Pairs with a wave shorter than original_context / high_factor are kept, and pairs with a wave
    longer than original_context / low_factor are slowed.
    """

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0, allow_inf_nan=False)
    low_factor: float = Field(gt=0)
    high_factor: float = Field(gt=0)
    original_context: int = Field(ge=1)

    @model_validator(mode="after")
    def _a_band(self) -> Self:
        if self.high_factor <= self.low_factor:
            raise ValueError(
                f"high_factor={self.high_factor:g} must lie above low_factor={self.low_factor:g}"
            )
        return self


class YarnScaling(Config):
    """YaRN (arXiv 2309.00071): pairs that rotate often are kept, slow ones slowed by `factor`.

    A pair that rotates more than `beta_fast` times over the original context is kept, one that
    rotates less than `beta_slow` times is slowed, with a ramp between; `truncate` widens the ramp
    to whole pairs. Cosines and sines are multiplied by `amplitude`.
    """

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0, allow_inf_nan=False)
    original_context: int = Field(ge=1)
    # Within these bounds no logarithm of a rotation's length overflows.
    beta_fast: float = Field(default=32.0, ge=1e-9, le=1e9)
    beta_slow: float = Field(default=1.0, ge=1e-9, le=1e9)
    truncate: bool = True
    amplitude: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class LongRopeScaling(Config):
    """LongRoPE (arXiv 2402.13753): each pair is slowed by its own factor.

    `short` holds up to the original context, `long` for longer sequences; cosines and sines are
    multiplied by the amplitude of the same name.
    """

    kind: Literal["longrope"] = "longrope"
    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int = Field(ge=1)
    short_amplitude: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    long_amplitude: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _same_pairs(self) -> Self:
        if len(self.short) != len(self.long):
            raise ValueError(
                f"short has {len(self.short)} factors and long {len(self.long)}; each has one for "
                "each pair of a head"
            )
        return self


RopeScaling = Annotated[
    LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling, Field(discriminator="kind")
]
