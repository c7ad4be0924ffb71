"""The base classes of routers: of their configs, and of the modules that return a `Routing`.

T tokens, D model width, E experts, K experts per token, V tokens of the vocabulary.
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
    """The sizes that determine a router's weights, together with the router's config."""

    width: int
    num_experts: int
    top_k: int
    banks: int = 1
    """the number of gates, each with `num_experts` outputs; the inner router of a hierarchical
    router has a gate for each group, any other router has one gate"""
    gate_bias: bool = False
    """whether the gate's logits include a learned bias (gpt-oss); this is not the choosing bias"""


class RouterSpec(Config):
    """The base of all routers' configs."""

    losses: ClassVar[Mapping[LossName, float]] = MappingProxyType({"balance": 0.01, "z": 0.001})
    """the losses that the router supports, with their default weights; `served` returns them by
    default"""
    loss_choices: ClassVar[CountedChoices] = "all"
    """the choices that the balance loss counts by default: all, or each token's first choice"""
    refused_policies: ClassVar[Mapping[Policy, str]] = MappingProxyType({})
    """capacity policies that have no meaning under this router, each with the reason"""
    causal: ClassVar[bool] = True
    """False if a token's experts depend on later tokens, in evaluation as well as in training"""
    causal_in_training: ClassVar[bool] = True
    """False if a token's experts depend on later tokens in training"""
    needs_ids: ClassVar[bool] = False
    """whether the router reads token ids"""
    takes_gate_bias: ClassVar[bool] = False
    """whether the gate can have a learned bias"""
    has_one_gate: ClassVar[bool] = False
    """whether one linear gate chooses each token's experts, so that the router can be a part of a
    hierarchical router"""

    def served(self) -> Mapping[LossName, float]:
        """The losses that the router supports, with their default weights; by default `losses`."""
        return self.losses

    @property
    def name(self) -> str:
        return type(self).model_fields["kind"].default

    @property
    def leaks(self) -> bool:
        """Whether a language model must refuse the router for reading later tokens."""
        return not self.causal

    @property
    def leaks_in_training(self) -> bool:
        """Whether a language model with the router must not be trained.

        The reason is that the router reads later tokens in training.
        """
        return self.leaks

    def with_vocabulary(self, vocabulary: int) -> Self:
        """The config for a model with `vocabulary` tokens.

        Only hash routers use this number: it is the number of rows of their table.
        """
        return self

    def check(self, num_experts: int, top_k: int) -> None:
        """Raises ValueError if the router does not support these numbers."""

    def check_gradient(self, num_experts: int, top_k: int) -> None:
        """Raises ValueError if the task's loss would give the router no gradient."""

    def tensors(self, shape: RouterShape, prefix: str) -> Iterator[Saved]:
        """The saved tensors of the router, for the model's ledger: weights, then buffers."""
        yield from self.weights(shape, prefix)
        yield from self.buffers(shape, prefix)

    def buffers(self, shape: RouterShape, prefix: str) -> Iterator[Buffer]:
        """The buffers that the module saves, in the module's order."""
        yield from gate_buffers(self.model_dump(), shape.banks * shape.num_experts, prefix)

    def weights(self, shape: RouterShape, prefix: str) -> Iterator[Weight]:
        """The parameters: by default an (E, D) matrix for each bank, and a bias if
        `shape.gate_bias` is True.
        """
        rows = shape.banks * shape.num_experts
        yield Weight(f"{prefix}weight", (rows, shape.width), "router")
        if shape.gate_bias:
            yield Weight(f"{prefix}gate_bias", (rows,), "router")

    def build(self, shape: RouterShape, capacity: Capacity) -> "Router":
        return ROUTERS.get(self.name).router(self, shape, capacity)

    @classmethod
    def variants(cls) -> list[type[Config]]:
        """The configs that a field of this type accepts.

        For `RouterSpec` itself these are the configs of all kinds.
        """
        return [one.config for one in ROUTERS.values.values()] if cls is RouterSpec else [cls]


class Router(nn.Module, ABC):
    """The base of all routers: modules that route tokens to experts."""

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
        """The number of experts per token; the mean if tokens have different numbers of experts."""
        return self.shape.top_k

    @property
    def rows_per_token(self) -> int:
        """The number of rows that a token has in a `Routing`, unused rows included.

        It applies to routers that give all tokens equally many consecutive rows.
        """
        return self.top_k

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """For `to`, `bfloat16` and the like: buffers move to the device but keep their dtype."""
        # Choosing biases stay in fp32: bf16 would round away a step of 1e-3 from a bias of 1.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    @abstractmethod
    def forward(self, tokens: Tokens, capacity: Capacity | None = None) -> Routing:
        """Route T tokens.

        `capacity` replaces the router's own capacity rule; generation passes `Dropless()`.
        """

    def step_bias(self, load_E: Tensor, rate: float) -> None:
        """Update the choosing biases, if there are any, from the load of an optimizer step."""

    def end_step(self, ranks: Ranks) -> None:
        """Update values that the router learns without a gradient, if there are any.

        An expert's threshold is such a value. The method is called on all ranks after each
        optimizer step.
        """

    @property
    def needs_token_counts(self) -> bool:
        """Whether the router needs the token counts of the training data."""
        return False

    def set_token_counts(self, counts_V: Tensor) -> None:
        """Set the token counts of the training data, for a router that needs them."""
        raise AssertionError(f"{type(self).__name__} needs no token counts")

    def late_loss(self, routing: Routing, nats_T: Tensor) -> Tensor:
        """A loss from each token's cross-entropy, for a router whose config supports such a loss.

        `nats_T` is the detached cross-entropy in nats. It is computed only after the model's last
        layer, so the loss is called late.
        """
        raise AssertionError(f"{type(self).__name__} has no loss of tokens' cross-entropies")


class RouterKind(NamedTuple):
    """The config and the module of one kind of router."""

    config: type[RouterSpec]
    router: type[Router]


ROUTERS: Registry[RouterKind] = Registry("kind", "mixtura.routers")

R = TypeVar("R", bound=type[Router])


def register_router(config: type[RouterSpec]) -> Callable[[R], R]:
    """A decorator of router classes: register the class and its config under the config's `kind`.

    Recipes, checkpoints and documentation pages use this name. Raises ValueError for a kind in use.
    """

    def registered(router: R) -> R:
        ROUTERS.add(config.model_fields["kind"].default, RouterKind(config, router))
        return router

    return registered


def refuse_single_renormalised(top_k: int, kind: str, remedy: str) -> None:
    """Raises ValueError for top_k=1 with renormalised weights.

    A single weight divided by itself is the constant 1.
    """
    if top_k == 1:
        raise ValueError(
            f"top_k=1 under router kind={kind} makes every combine weight the constant 1, so the "
            f"task gives the router no gradient; {remedy}"
        )
