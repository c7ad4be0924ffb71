"""RoPE scaling: how RoPE is changed for sequences longer than the context of training. No torch.

RoPE rotates pairs of dims. A pair's wavelength is the number of positions in a full rotation. To
slow a pair by a factor is to multiply its wavelength by the factor.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mixtura.config import Config


class LinearScaling(Config):
    """Positions are divided by `factor` (position interpolation, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0, allow_inf_nan=False)


class Llama3Scaling(Config):
    """The scaling of Llama 3.1, which depends on a pair's wavelength.

    Pairs of a wavelength below original_context / high_factor are unchanged. Pairs of a wavelength
    above original_context / low_factor are slowed by `factor`. Pairs of a wavelength between these
    two limits have a blend of the unchanged and the slowed frequency.
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
    """YaRN (arXiv 2309.00071), which depends on a pair's number of rotations.

    A pair with more than `beta_fast` rotations in the original context is unchanged. A pair with
    fewer than `beta_slow` rotations is slowed by `factor`. Between these two limits, a linear ramp
    over the pairs' numbers blends the unchanged and the slowed frequency. `truncate` rounds both
    ends of the ramp outwards to whole numbers. Cosines and sines are multiplied by `amplitude`.
    """

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0, allow_inf_nan=False)
    original_context: int = Field(ge=1)
    # Within these bounds the logarithms that give the ramp's ends are finite.
    beta_fast: float = Field(default=32.0, ge=1e-9, le=1e9)
    beta_slow: float = Field(default=1.0, ge=1e-9, le=1e9)
    truncate: bool = True
    amplitude: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class LongRopeScaling(Config):
    """LongRoPE (arXiv 2402.13753): each pair is slowed by a factor of its own.

    Sequences up to the original context use the factors `short`, longer sequences use `long`.
    Cosines and sines are multiplied by `short_amplitude` or `long_amplitude` accordingly.
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
