"""What the shape of any language model answers from its ledger of weights. No torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from pydantic import Field

from mixtura.config import Config
from mixtura.shapes import bounds, ledger
from mixtura.shapes.ledger import Buffer, Convention, Role, Saved, Weight
from mixtura.shapes.moe import MoEShape


class ModelShape(Config, ABC):
    """A language model's shape; a subclass gives its ledger and its MoE layers."""

    width: int = Field(ge=1, le=bounds.SIDE)
    vocabulary: int = Field(ge=1, le=bounds.SIDE)
    context: int = Field(ge=1, le=bounds.CONTEXT)

    @abstractmethod
    def tensors(self) -> Iterator[Saved]:
        """The ledger: each saved tensor once, under the name that the built model gives it.

        In the order of a forward pass.
        """

    @property
    @abstractmethod
    def moe_shapes(self) -> Mapping[int, MoEShape]:
        """Each MoE layer's own shape by its number, in order; layers count from 0."""

    def weights(self) -> Iterator[Weight]:
        """The parameters of the ledger."""
        return ledger.weights_of(self.tensors())

    def buffers(self) -> Iterator[Buffer]:
        """All else that is saved."""
        return (one for one in self.tensors() if isinstance(one, Buffer))

    def roles(self) -> Mapping[str, Role]:
        """The role of each weight by its name."""
        return {weight.name: weight.role for weight in self.weights()}

    def total_parameters(self) -> int:
        return ledger.total_parameters(self.weights())

    def active_parameters(self, convention: Convention = "A") -> int:
        """Parameters that one token uses; see `ledger.active_parameters` for the conventions."""
        return ledger.active_parameters(self.weights(), convention)

    def flops_per_token(self, length: int | None = None) -> int:
        """Forward FLOPs of a token in a sequence of `length` (default: the context).

        A multiply-add is 2. Norms, activations and the embedding's look-up are left out.
        """
        return ledger.matmul_flops(self.weights())
