"""The base class of model shapes, which computes counts from a ledger. No torch.

A ledger lists every tensor that a model saves.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from pydantic import Field

from mixtura.config import Config
from mixtura.shapes import bounds, ledger
from mixtura.shapes.ledger import Buffer, Convention, Role, Saved, Weight
from mixtura.shapes.moe import MoEShape


class ModelShape(Config, ABC):
    """The shape of a language model; a subclass defines `tensors` and `moe_shapes`."""

    width: int = Field(ge=1, le=bounds.SIDE)
    vocabulary: int = Field(ge=1, le=bounds.SIDE)
    context: int = Field(ge=1, le=bounds.CONTEXT)

    @abstractmethod
    def tensors(self) -> Iterator[Saved]:
        """The ledger: each saved tensor once, in the order of a forward pass.

        A tensor's name is its name in the built model.
        """

    @property
    @abstractmethod
    def moe_shapes(self) -> Mapping[int, MoEShape]:
        """The shape of each MoE layer by the layer's number, from the first layer to the last.

        Layers count from 0.
        """

    def weights(self) -> Iterator[Weight]:
        """The parameters of the ledger."""
        return ledger.weights_of(self.tensors())

    def buffers(self) -> Iterator[Buffer]:
        """The tensors of the ledger that are not parameters."""
        return (one for one in self.tensors() if isinstance(one, Buffer))

    def roles(self) -> Mapping[str, Role]:
        """The role of each weight, by the weight's name."""
        return {weight.name: weight.role for weight in self.weights()}

    def total_parameters(self) -> int:
        return ledger.total_parameters(self.weights())

    def active_parameters(self, convention: Convention = "A") -> int:
        """The number of parameters that one token uses.

        See `mixtura.shapes.ledger.active_parameters` for the conventions.
        """
        return ledger.active_parameters(self.weights(), convention)

    def flops_per_token(self, length: int | None = None) -> int:
        """Forward FLOPs of one token in a sequence of `length` tokens (default: the context).

        A multiply-add counts as 2. Norms, activations and the embedding's look-up are not counted.
        """
        return ledger.matmul_flops(self.weights())
