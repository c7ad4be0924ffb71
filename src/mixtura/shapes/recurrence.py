"""The shapes of recurrent mixers, which replace attention in some layers of a decoder.

For each sequence, a recurrent mixer keeps a state: a few tensors whose size does not depend on the
sequence's length.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mixtura.config import Config
from mixtura.shapes import bounds
from mixtura.shapes.ledger import Weight


class RecurrenceSpec(Config, ABC):
    """The shape of any recurrent mixer, and the layers that have it."""

    layers: tuple[int, ...] = Field(min_length=1, max_length=bounds.LAYERS)
    """numbers of the layers that have this mixer in place of attention; layers count from 0"""

    @abstractmethod
    def weights(self, width: int, prefix: str) -> Iterator[Weight]: ...

    @abstractmethod
    def state(self, width: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the tensors, in fp32, that a layer keeps of one sequence."""

    @abstractmethod
    def flops_of_token(self, width: int) -> int:
        """Forward FLOPs of one token in one layer, without products with the layer's weights."""

    def state_numbers(self, width: int) -> int:
        """How many elements the state of one sequence has in one layer."""
        return sum(map(prod, self.state(width)))

    @model_validator(mode="after")
    def _each_layer_once(self) -> Self:
        seen: set[int] = set()
        for layer in self.layers:
            if layer in seen:
                raise ValueError(f"layers names layer {layer} twice; name each layer once")
            seen.add(layer)
        return self


class ShortConvShape(RecurrenceSpec):
    """A gated causal convolution over the last `kernel` tokens, channel by channel (LFM2).

    For an input x, (b, c, v) = projection(x), and the output is out(c * conv(b * v)).
    """

    kind: Literal["short_conv"] = "short_conv"
    kernel: int = Field(ge=2, le=bounds.HEADS)
    """the number of tokens that the convolution covers, the newest included"""
    bias: bool = False
    """whether both projections and the convolution have a bias"""

    def weights(self, width: int, prefix: str) -> Iterator[Weight]:
        shapes = {"projection": (3 * width, width), "conv": (width, self.kernel)}
        for name, shape in {**shapes, "out": (width, width)}.items():
            yield Weight(f"{prefix}{name}.weight", shape, "recurrent")
            if self.bias:
                yield Weight(f"{prefix}{name}.bias", shape[:1], "recurrent")

    def state(self, width: int) -> tuple[tuple[int, ...], ...]:
        """The shape of the convolution's last kernel - 1 inputs, of which the oldest is first."""
        return ((self.kernel - 1, width),)

    def flops_of_token(self, width: int) -> int:
        return 0


class GatedDeltaShape(RecurrenceSpec):
    """A Gated DeltaNet (arXiv 2412.06464): each value head keeps a matrix that maps keys to values.

    At each token the matrix decays. Then it is changed so that it maps the token's key to a value
    nearer to the token's value. Key head i serves the value heads i * r to (i + 1) * r - 1, with
    r = value_heads / key_heads.
    """

    kind: Literal["gated_delta"] = "gated_delta"
    key_heads: int = Field(ge=1, le=bounds.HEADS)
    """the number of query heads, which is also the number of key heads"""
    value_heads: int = Field(ge=1, le=bounds.HEADS)
    key_dim: int = Field(ge=1, le=bounds.SIDE)
    value_dim: int = Field(ge=1, le=bounds.SIDE)
    kernel: int = Field(ge=2, le=bounds.TAPS)
    """the number of tokens that the convolution of queries, keys and values covers"""
    norm_epsilon: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """epsilon of the RMS norm of each head's output; the blocks' norms have their own epsilon"""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.value_heads % self.key_heads:
            raise ValueError(
                f"value_heads={self.value_heads} must be a multiple of key_heads={self.key_heads}"
            )
        return self

    @property
    def keys(self) -> int:
        """The dims of a token's keys in all heads together; its queries have as many dims."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """The dims of a token's values in all heads together; its output gate has as many dims."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """The number of the convolution's channels: all dims of queries, keys and values."""
        return 2 * self.keys + self.values

    def weights(self, width: int, prefix: str) -> Iterator[Weight]:
        rows = self.channels + self.values
        for name, shape in {
            "rate_log": (self.value_heads,),
            "step_bias": (self.value_heads,),
            "projection.weight": (rows, width),
            "gates.weight": (2 * self.value_heads, width),
            "conv.weight": (self.channels, self.kernel),
        }.items():
            yield Weight(f"{prefix}{name}", shape, "recurrent")
        yield Weight(f"{prefix}norm.weight", (self.value_dim,), "norm")
        yield Weight(f"{prefix}out.weight", (width, self.values), "recurrent")

    def state(self, width: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the last kernel - 1 inputs of the convolution, and of the matrices."""
        matrices = (self.value_heads, self.key_dim, self.value_dim)
        return (self.kernel - 1, self.channels), matrices

    def flops_of_token(self, width: int) -> int:
        """For each element of a matrix: decay 1, product with the key 2, update 2, output 2."""
        return 7 * self.value_heads * self.key_dim * self.value_dim


class Mamba2Shape(RecurrenceSpec):
    """Mamba-2 (arXiv 2405.21060): each head keeps a matrix S of `state_dim` by `head_dim`.

    For each head, a token has a step and an input x of `head_dim` dims. The token updates S to
    e^(-rate * step) * S + b (step * x)^T, and its output is S^T c + skip * x. The heads of a group
    share b and c. The norm of the gated outputs is computed over each group by itself.
    """

    kind: Literal["mamba2"] = "mamba2"
    heads: int = Field(ge=1, le=bounds.HEADS)
    head_dim: int = Field(ge=1, le=bounds.SIDE)
    state_dim: int = Field(ge=1, le=bounds.SIDE)
    """the number of elements of the state for each dim of a head"""
    groups: int = Field(default=1, ge=1, le=bounds.HEADS)
    kernel: int = Field(ge=2, le=bounds.TAPS)
    """the number of tokens that the convolution of inputs, b and c covers"""
    bias: bool = False
    """whether the projections have a bias"""
    conv_bias: bool = True
    least_step: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """the lower bound of a token's step, after softplus"""
    most_step: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """the upper bound of a token's step; None: no upper bound"""
    norm_epsilon: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    """epsilon of the RMS norm of a group's gated outputs; the blocks' norms have their own"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads % self.groups:
            raise ValueError(f"heads={self.heads} must be a multiple of groups={self.groups}")
        if self.most_step is not None and self.most_step < self.least_step:
            raise ValueError(
                f"most_step={self.most_step:g} must be at least least_step={self.least_step:g}"
            )
        return self

    @property
    def inner(self) -> int:
        """The dims of a token's input in all heads together; its gate has as many dims."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """The number of the convolution's channels: all dims of inputs, b and c."""
        return self.inner + 2 * self.groups * self.state_dim

    def weights(self, width: int, prefix: str) -> Iterator[Weight]:
        rows = self.inner + self.channels
        shapes: dict[str, tuple[int, ...]] = {
            "rate_log": (self.heads,),
            "step_bias": (self.heads,),
            "skip": (self.heads,),
            "projection.weight": (rows, width),
            "projection.bias": (rows,),
            "steps.weight": (self.heads, width),
            "steps.bias": (self.heads,),
            "conv.weight": (self.channels, self.kernel),
            "conv.bias": (self.channels,),
            "norm.weight": (self.inner,),
            "out.weight": (width, self.inner),
            "out.bias": (width,),
        }
        for name, shape in shapes.items():
            if name.endswith(".bias") and not (self.conv_bias if "conv" in name else self.bias):
                continue
            yield Weight(f"{prefix}{name}", shape, "norm" if "norm" in name else "recurrent")

    def state(self, width: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the last kernel - 1 inputs of the convolution, and of the matrices."""
        return (self.kernel - 1, self.channels), (self.heads, self.state_dim, self.head_dim)

    def flops_of_token(self, width: int) -> int:
        """For each element of a matrix: decay 1, update 2, output 2."""
        return 5 * self.heads * self.state_dim * self.head_dim


AnyRecurrence = Annotated[
    ShortConvShape | GatedDeltaShape | Mamba2Shape, Field(discriminator="kind")
]
