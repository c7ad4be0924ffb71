"""One entry for each tensor that a model saves; every count follows from them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Literal

Role = Literal[
    "embedding",
    "norm",
    "attention",
    "recurrent",
    "ffn",
    "router",
    "expert",
    "shared_expert",
    "residual",
    "head",
]
Convention = Literal["A", "B"]

# Weights that are multiplied with every token; norms and embeddings are not counted as FLOPs.
MATMUL_ROLES: frozenset[Role] = frozenset(
    {"attention", "recurrent", "ffn", "router", "expert", "shared_expert", "residual", "head"}
)


@dataclass(frozen=True, slots=True)
class Weight:
    """A named parameter; `active` is the share that one token uses (top_k/E of the experts)."""

    name: str
    shape: tuple[int, ...]
    role: Role
    active: Fraction = Fraction(1)

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def active_parameters(self) -> int:
        return int(self.parameters * self.active)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A named tensor that is saved and is no parameter, such as a router's choosing bias.

    The optimizer does not change it, and its dtype does not follow the weights'.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"]


Saved = Weight | Buffer


def weights_of(tensors: Iterable[Saved]) -> Iterator[Weight]:
    """The parameters among the tensors."""
    return (one for one in tensors if isinstance(one, Weight))


def total_parameters(weights: Iterable[Weight]) -> int:
    """All weights, each counted once."""
    return sum(weight.parameters for weight in weights)


def active_parameters(weights: Iterable[Weight], convention: Convention) -> int:
    """Weights that one token uses. A: all of them; B: A without an untied input embedding.

    A tied head is the embedding itself, and is in the ledger once, as the head.
    """
    return sum(
        weight.active_parameters
        for weight in weights
        if convention == "A" or weight.role != "embedding"
    )


def matmul_flops(weights: Iterable[Weight]) -> int:
    """Forward FLOPs of one token in matrix products; a multiply-add is 2."""
    return sum(2 * weight.active_parameters for weight in weights if weight.role in MATMUL_ROLES)
