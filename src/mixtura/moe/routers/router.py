"""What every router is: a config that says what it can serve, and a module that gives a Routing.

T tokens, D model width, E experts, K experts per token.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Self, TypeVar

from torch import Tensor, nn

from mixtura.config import Config
from mixtura.moe.capacity import Capacity, Policy
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens
from mixtura.ranks import Ranks
from mixtura.registry import Registry
from mixtura.shapes.gate import gate_buffers
from mixtura.shapes.ledger import Buffer, Saved, Weight

LossName = Literal[
    "balance",
    "z",
    "importance",
    "load",
    "device",
    "communication",
    "threshold",
    "entropy",
    "policy",
]
Choices = Literal["all", "first"]


@dataclass(frozen=True, slots=True)
class RouterShape:
    """Everything outside a router's own config that decides its weights."""

    width: int
    num_experts: int
    top_k: int
    banks: int = 1
    """gates side by side, one for each group of a hierarchical router; each has E outputs"""
    gate_bias: bool = False
    """whether the gate's product has a learned bias (gpt-oss); not the one that only chooses"""


class RouterSpec(Config):
    """Base of the routers' configs."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({"balance": 0.01, "z": 0.001})
    """see `served`"""
    loss_choices: ClassVar[Choices] = "all"
    """which choices the balance loss counts where the recipe does not say"""
    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType({})
    """capacity policies that mean nothing here, with the reason"""
    causal: ClassVar[bool] = True
    """False where a token's experts depend on later tokens, in evaluation too"""
    causal_in_training: ClassVar[bool] = True
    """False where they do so in training"""
    needs_ids: ClassVar[bool] = False
    """whether it reads token ids"""
    takes_gate_bias: ClassVar[bool] = False
    """whether its gate can have a learned bias"""
    has_one_gate: ClassVar[bool] = False
    """whether each token's choice comes from one linear gate, so that a hierarchical router can
    hold it"""

    def served(self) -> Mapping[LossName, float]:
        """The losses it can serve and their weights where none is given; `losses` for most."""
        return self.losses

    @property
    def name(self) -> str:
        return type(self).model_fields["kind"].default

    @property
    def leaks(self) -> bool:
        """Whether a language model must refuse it: it is not causal, and no option accepts that."""
        return not self.causal

    @property
    def leaks_in_training(self) -> bool:
        """Whether training a language model must be refused, for the same reason."""
        return self.leaks

    def with_vocabulary(self, vocabulary: int) -> Self:
        """For a model of that many tokens; hash routers fill in what they were not told."""
        return self

    def check(self, num_experts: int, top_k: int) -> None:
        """Raises ValueError where it cannot route so."""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        """Raises ValueError where it can route so, and the task would give it no gradient."""

    def tensors(self, shape: RouterShape, prefix: str) -> Iterator[Saved]:
        """Its part of the ledger: weights, then buffers."""
        yield from self.weights(shape, prefix)
        yield from self.buffers(shape, prefix)

    def buffers(self, shape: RouterShape, prefix: str) -> Iterator[Buffer]:
        """What its module saves as buffers, in their order."""
        yield from gate_buffers(self.model_dump(), shape.banks * shape.num_experts, prefix)

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        """Its parameters; one matrix of (E, D) unless it says otherwise."""
        rows = shape.banks * shape.num_experts
        yield Weight(f"{prefix}weight", (rows, shape.width), "router")
        if shape.gate_bias:
            yield Weight(f"{prefix}gate_bias", (rows,), "router")

    def build(self, shape: RouterShape, capacity: Capacity) -> "Router":
        return ROUTERS.get(self.name).router(self, shape, capacity)

    @classmethod
    def variants(cls) -> list[type[Config]]:
        """The configs of all kinds, where a field takes any router."""
        return [one.config for one in ROUTERS.values.values()] if cls is RouterSpec else [cls]


class Router(nn.Module, ABC):
    """Gives each token its experts; which of them, and how, is a subclass's."""

    def __init__(self, config: RouterSpec, shape: RouterShape, capacity: Capacity) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.capacity = capacity

    @property
    def num_experts(self) -> int:
        return self.shape.num_experts

    @property
    def top_k(self) -> int:
        """Experts per token; their mean, where tokens have different numbers of them."""
        return self.shape.top_k

    @property
    def rows_per_token(self) -> int:
        """The most experts that a token may have, where its rows stand together."""
        return self.top_k

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to`, `bfloat16` and their like pass here; buffers take the device, not the dtype."""
        # In fp32 for good: steps of 1e-3 vanish in bf16 beside a bias of 1.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    @abstractmethod
    def forward(self, tokens: Tokens, capacity: Capacity | None = None) -> Routing:
        """Route T tokens. `capacity` stands in for the router's own rule (generation: Dropless)."""

    def step_bias(self, load_E: Tensor, rate: float) -> None:
        """Move choosing biases after an optimizer step with that load; most routers have none."""

    def end_step(self, ranks: Ranks) -> None:
        """Update what the router learns outside the gradient; most routers learn nothing so.

        Called after each optimizer step, on all ranks.
        """

    @property
    def needs_token_counts(self) -> bool:
        """Whether it routes by how frequent each token of the vocabulary is in training."""
        return False

    def set_token_counts(self, counts_V: Tensor) -> None:
        """Take the counts of training's tokens; for a router that needs them."""
        raise AssertionError(f"{type(self).__name__} needs no token counts")

    def late_loss(self, routing: Routing, nats_T: Tensor) -> Tensor:
        """A loss that follows from each token's cross-entropy, for a router whose config serves it.

        `nats_T` is detached. It is known after the model's last layer, hence late.
        """
        raise AssertionError(f"{type(self).__name__} has no loss of tokens' cross-entropies")


class Kind(NamedTuple):
    """One kind of router."""

    config: type[RouterSpec]
    router: type[Router]


ROUTERS: Registry[Kind] = Registry("kind", "mixtura.routers")

R = TypeVar("R", bound=type[Router])


def register_router(config: type[RouterSpec]) -> Callable[[R], R]:
    """A router class's decorator: recipes, checkpoints and pages know it by its config's `kind`.

    Raises ValueError for a kind in use.
    """

    def registered(router: R) -> R:
        ROUTERS.add(config.model_fields["kind"].default, Kind(config, router))
        return router

    return registered


def refuse_single_renormalised(top_k: int, kind: str, remedy: str) -> None:
    """Raises ValueError for top_k=1: one renormalised weight is the constant 1."""
    if top_k == 1:
        raise ValueError(
            f"top_k=1 under router kind={kind} makes every combine weight the constant 1, so the "
            f"task gives the router no gradient; {remedy}"
        )
