"""The entries of a ledger, and the counts that are computed from a ledger.

A ledger lists every tensor that a model saves: its name, shape, role and active share.
"""

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

# The roles of weights that take part in matrix products. The FLOPs of norms and embeddings are not
# counted.
MATMUL_ROLES: frozenset[Role] = frozenset(
    {"attention", "recurrent", "ffn", "router", "expert", "shared_expert", "residual", "head"}
)


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter; one token uses the share `active` of it (top_k / num_experts for experts)."""

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
    """A saved tensor that is not a parameter, such as a router's choosing bias.

    The optimizer does not change a buffer, and a buffer keeps its dtype whatever dtype the weights
    have.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"]


Saved = Weight | Buffer


def weights_of(tensors: Iterable[Saved]) -> Iterator[Weight]:
    """The entries of `tensors` that are parameters."""
    return (one for one in tensors if isinstance(one, Weight))


def total_parameters(weights: Iterable[Weight]) -> int:
    """The number of all parameters, each counted once."""
    return sum(weight.parameters for weight in weights)


def active_parameters(weights: Iterable[Weight], convention: Convention) -> int:
    """The number of parameters that one token uses.

    Convention A counts all of them; convention B leaves out an untied input embedding. A tied
    embedding is listed once, as the head, so that both conventions count it.
    """
    return sum(
        weight.active_parameters
        for weight in weights
        if convention == "A" or weight.role != "embedding"
    )


def matmul_flops(weights: Iterable[Weight]) -> int:
    """Forward FLOPs of one token in matrix products; a multiply-add counts as 2."""
    return sum(2 * weight.active_parameters for weight in weights if weight.role in MATMUL_ROLES)
