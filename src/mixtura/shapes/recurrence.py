"""The shapes of recurrent mixers, which stand in place of attention in some layers of a decoder.

A recurrent mixer keeps a few tensors of constant size of a sequence, whatever the sequence's
length: its state.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod
from typing import Literal, Self

from pydantic import Field, model_validator

from mixtura.config import Config
from mixtura.shapes import bounds
from mixtura.shapes.ledger import Weight


class RecurrenceSpec(Config, ABC):
    """The shape of any recurrent mixer, and the layers that hold it."""

    layers: tuple[int, ...] = Field(min_length=1, max_length=bounds.LAYERS)
    """numbers of the layers that hold it in place of attention; layers count from 0"""

    @abstractmethod
    def weights(self, width: int, prefix: str) -> Iterator[Weight]: ...

    @abstractmethod
    def state(self, width: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the tensors, in fp32, that a layer keeps of one sequence."""

    @abstractmethod
    def flops_of_token(self, width: int) -> int:
        """Forward FLOPs of one token in one layer beside the products with its weights."""

    def state_numbers(self, width: int) -> int:
        """The numbers in one layer's state of one sequence."""
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

    With (b, c, v) = projection(x): out(c * conv(b * v)).
    """

    kind: Literal["short_conv"] = "short_conv"
    kernel: int = Field(ge=2, le=bounds.HEADS)
    """the tokens that the convolution covers, the newest included"""
    bias: bool = False
    """whether both projections and the convolution have a bias"""

    def weights(self, width: int, prefix: str) -> Iterator[Weight]:
        shapes = {"projection": (3 * width, width), "conv": (width, self.kernel)}
        for name, shape in {**shapes, "out": (width, width)}.items():
            yield Weight(f"{prefix}{name}.weight", shape, "recurrent")
            if self.bias:
                yield Weight(f"{prefix}{name}.bias", shape[:1], "recurrent")

    def state(self, width: int) -> tuple[tuple[int, ...], ...]:
        """The last kernel - 1 inputs of the convolution, the oldest first."""
        return ((self.kernel - 1, width),)

    def flops_of_token(self, width: int) -> int:
        return 0


# One kind so far: a second makes this a union, discriminated by `kind`.
AnyRecurrence = ShortConvShape
