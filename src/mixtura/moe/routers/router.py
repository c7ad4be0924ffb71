"""The base of all routers: a config that lists its losses, and a module that returns a Routing.

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
CountedChoices = Literal["all", "first"]


@dataclass(frozen=True, slots=True)
class RouterShape:
    """All that determines a router's weights, besides its own config."""

    width: int
    num_experts: int
    top_k: int
    banks: int = 1
    """number of gates side by side, one for each group of a hierarchical router; E outputs each"""
    gate_bias: bool = False
    """whether the gate's product has a learned bias (gpt-oss), unlike a choosing bias"""


class RouterSpec(Config):
    """Base of the routers' configs."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({"balance": 0.01, "z": 0.001})
    """the default of `served`"""
    loss_choices: ClassVar[CountedChoices] = "all"
    """the choices that the balance loss counts by default"""
    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType({})
    """capacity policies that have no meaning under this router, each with the reason"""
    causal: ClassVar[bool] = True
    """False where a token's experts depend on later tokens, even in evaluation"""
    causal_in_training: ClassVar[bool] = True
    """False where they depend on later tokens in training"""
    needs_ids: ClassVar[bool] = False
    """whether the router reads token ids"""
    takes_gate_bias: ClassVar[bool] = False
    """whether the gate can have a learned bias"""
    has_one_gate: ClassVar[bool] = False
    """whether each token's choice comes from one linear gate, so that the router can be a part of a
    hierarchical one"""

    def served(self) -> Mapping[LossName, float]:
        """The losses that the router can serve, with their default weights; `losses` for most."""
        return self.losses

    @property
    def name(self) -> str:
        return type(self).model_fields["kind"].default

    @property
    def leaks(self) -> bool:
        """Whether a language model must refuse the router, since it reads later tokens."""
        return not self.causal

    @property
    def leaks_in_training(self) -> bool:
        """Whether training a language model must refuse the router, for the same reason."""
        return self.leaks

    def with_vocabulary(self, vocabulary: int) -> Self:
        """The config for a model with that many tokens; hash routers size their tables by it."""
        return self

    def check(self, num_experts: int, top_k: int) -> None:
        """Raises ValueError where the router does not support these numbers."""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        """Raises ValueError where the router would get no gradient from the task."""

    def tensors(self, shape: RouterShape, prefix: str) -> Iterator[Saved]:
        """The router's part of the ledger: weights, then buffers."""
        yield from self.weights(shape, prefix)
        yield from self.buffers(shape, prefix)

    def buffers(self, shape: RouterShape, prefix: str) -> Iterator[Buffer]:
        """The buffers that the module saves, in their order."""
        yield from gate_buffers(self.model_dump(), shape.banks * shape.num_experts, prefix)

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        """The parameters; by default one matrix of (E, D)."""
        rows = shape.banks * shape.num_experts
        yield Weight(f"{prefix}weight", (rows, shape.width), "router")
        if shape.gate_bias:
            yield Weight(f"{prefix}gate_bias", (rows,), "router")

    def build(self, shape: RouterShape, capacity: Capacity) -> "Router":
        return ROUTERS.get(self.name).router(self, shape, capacity)

    @classmethod
    def variants(cls) -> list[type[Config]]:
        """The configs of all kinds for `RouterSpec` itself, where a field accepts any router."""
        return [one.config for one in ROUTERS.values.values()] if cls is RouterSpec else [cls]


class Router(nn.Module, ABC):
    """Gives each token its experts; a subclass chooses them."""

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
        """Experts per token; the mean, where tokens have different numbers of experts."""
        return self.shape.top_k

    @property
    def rows_per_token(self) -> int:
        """The most rows of a token, where its rows are consecutive."""
        return self.top_k

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to`, `bfloat16` and the like: buffers change their device, and keep their dtype."""
        # Buffers stay in fp32, since steps of 1e-3 vanish in bf16 beside a bias of 1.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    @abstractmethod
    def forward(self, tokens: Tokens, capacity: Capacity | None = None) -> Routing:
        """Route T tokens. `capacity` replaces the router's own rule (generation: Dropless)."""

    def step_bias(self, load_E: Tensor, rate: float) -> None:
        """Update choosing biases by an optimizer step's load; most routers have none."""

    def end_step(self, ranks: Ranks) -> None:
        """Update what the router learns without a gradient; most routers learn nothing so.

        Called after each optimizer step, on all ranks.
        """

    @property
    def needs_token_counts(self) -> bool:
        """Whether the router needs the frequency of each token in training."""
        return False

    def set_token_counts(self, counts_V: Tensor) -> None:
        """Set the counts of training's tokens, for a router that needs them."""
        raise AssertionError(f"{type(self).__name__} needs no token counts")

    def late_loss(self, routing: Routing, nats_T: Tensor) -> Tensor:
        """A loss that follows from each token's cross-entropy, for a router whose config serves it.

        `nats_T` is detached. It exists only after the model's last layer, hence the name.
        """
        raise AssertionError(f"{type(self).__name__} has no loss of tokens' cross-entropies")


class RouterKind(NamedTuple):
    """The config and the module of one kind of router."""

    config: type[RouterSpec]
    router: type[Router]


ROUTERS: Registry[RouterKind] = Registry("kind", "mixtura.routers")

R = TypeVar("R", bound=type[Router])


def register_router(config: type[RouterSpec]) -> Callable[[R], R]:
    """A router class's decorator: recipes, checkpoints and pages find it by its config's `kind`.

    Raises ValueError for a kind in use.
    """

    def registered(router: R) -> R:
        ROUTERS.add(config.model_fields["kind"].default, RouterKind(config, router))
        return router

    return registered


def refuse_single_renormalised(top_k: int, kind: str, remedy: str) -> None:
    """Raises ValueError for top_k=1, where a renormalised weight is the constant 1."""
    if top_k == 1:
        raise ValueError(
            f"top_k=1 under router kind={kind} makes every combine weight the constant 1, so the "
            f"task gives the router no gradient; {remedy}"
        )
