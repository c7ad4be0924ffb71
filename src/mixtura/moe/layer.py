"""The MoE layer, for Mixtura's decoder and for any other PyTorch module.

B sequences of S tokens, T = B*S tokens, D width, E experts, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.kernels.row_linear import row_linear, row_sigmoid
from mixtura.moe.backends import BackendName
from mixtura.moe.balance import BalanceConfig, Balancer
from mixtura.moe.capacity import Capacity, CapacityConfig
from mixtura.moe.experts import DenseFFN, Experts, compute_dtype
from mixtura.moe.routers import AnyRouter, RouterShape, SoftmaxTopKConfig
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens
from mixtura.ranks import Ranks
from mixtura.shapes import MoEShape, Saved


class MoEConfig(MoEShape):
    """The config of an MoE layer: shape, router, capacity policy, balancing losses and backend."""

    router: AnyRouter = SoftmaxTopKConfig()
    capacity: CapacityConfig = CapacityConfig()
    balance: BalanceConfig = BalanceConfig()
    backend: BackendName = "auto"

    @model_validator(mode="after")
    def _router_fits(self) -> Self:
        self.router.check(self.num_experts, self.top_k)
        if self.gate_bias and not self.router.takes_gate_bias:
            raise ValueError(
                f"gate_bias=true under router kind={self.router.name}, whose gate has none; "
                "choose kind=topk_softmax, softmax_topk or sigmoid_topk, or leave gate_bias out"
            )
        self.balance.weights_for(self.router)
        self.balance.choices_for(self.router)
        reason = self.router.refused_policies.get(self.capacity.policy)
        if reason is not None:
            raise ValueError(
                f"capacity.policy={self.capacity.policy} under router kind={self.router.name}: "
                f"{reason}"
            )
        return self

    def check_gradient(self) -> None:
        """Raises ConfigError if the task's loss would give the router no gradient."""
        try:
            self.router.check_gradient(self.num_experts, self.top_k)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def of_language_model(self, vocabulary: int) -> Self:
        """The config for a causal language model with `vocabulary` different tokens.

        Raises ValueError for a router whose choices depend on later tokens, unless its config
        accepts that. It also raises ValueError for a hash router whose table has fewer rows than
        the vocabulary.
        """
        if self.router.leaks:
            raise ValueError(
                f"router kind={self.router.name} chooses by later tokens too, so a language model "
                "would be trained on its own future; choose kind=expert_threshold, or set "
                "router.accept_leak=true"
            )
        router = self.router.with_vocabulary(vocabulary)
        return self if router is self.router else self.model_copy(update={"router": router})

    def check_training(self) -> None:
        """Raises ConfigError if a causal language model with this layer must not be trained.

        The reason may be that the task's loss would give the router no gradient, or that the
        router's choices in training depend on later tokens and its config does not accept that. The
        model may still be evaluated: evaluation needs no gradient, and the router may be causal in
        evaluation.
        """
        self.check_gradient()
        if self.router.leaks_in_training:
            raise ConfigError(
                f"router kind={self.router.name} chooses by later tokens too in training, so a "
                "language model would learn to lean on its own future; choose another kind, or set "
                "router.accept_leak=true to train with that"
            )

    def gate_tensors(self, width: int, prefix: str) -> Iterator[Saved]:
        return self.router.tensors(self.router_shape(width), prefix)

    def router_shape(self, width: int) -> RouterShape:
        return RouterShape(width, self.num_experts, self.top_k, gate_bias=self.gate_bias)


@dataclass(frozen=True, slots=True)
class MoEOutput:
    """The output of an MoE layer."""

    hidden: Tensor
    """the layer's output, of the input's shape"""
    routing: Routing
    losses: Mapping[str, Tensor]
    """this layer's balancing losses by name, each times its weight; empty outside training"""
    late_loss: Callable[[Tensor], Tensor] | None = None
    """a weighted loss as a function of each token's cross-entropy in nats, (T,); None for a router
    without such a loss; see `late_losses`"""

    @property
    def loss(self) -> Tensor:
        """The sum of `losses`, to be added to the task's loss; 0 outside training."""
        return sum(self.losses.values(), self.hidden.new_zeros((), dtype=torch.float32))


class RowLinear(nn.Linear):
    """A linear layer; within `rows_alone()` a row's result does not depend on other rows."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, the name in torch
        return row_linear(input, self.weight)


class MoE(nn.Module):
    """An MoE layer: a router, routed experts, shared experts and a residual branch.

    The output is y = sum_k weight_k expert_k(x) + shared(x). With a residual branch the output is
    `c_0 y + c_1 residual(x)`, where c = softmax(W x). Call `mixtura.moe.end_step(model)` after each
    optimizer step; without the call, choosing biases and thresholds never change.
    """

    def __init__(self, width: int, config: MoEConfig) -> None:
        super().__init__()
        if config.pyramid:
            raise ConfigError(
                f"pyramid of {len(config.pyramid)} steps: one layer has one number of experts; "
                "build it from config.of_layer(NUMBER), or from a config without a pyramid"
            )
        self.config = config
        self.balancer = Balancer(config.balance, config.router, config.num_experts)
        self.router = config.router.build(config.router_shape(width), config.capacity.build())
        self.experts = Experts(
            width,
            config.num_experts,
            config.expert_width,
            config.activation,
            config.backend,
            bias=config.expert_bias,
        )
        self.shared = self._dense(width, config.shared_width)
        self.shared_gate = RowLinear(width, 1, bias=False) if config.shared_gate else None
        self.residual = self._dense(width, config.residual_width)
        self.residual_mix = RowLinear(width, 2, bias=False) if config.residual_width else None

    def _dense(self, width: int, hidden: int) -> DenseFFN | None:
        return DenseFFN(width, hidden, self.config.activation) if hidden else None

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        capacity: Capacity | None = None,
        ids: Tensor | None = None,
    ) -> MoEOutput:
        """Compute the layer for x of shape (B, S, D), or (T, D) as one sequence.

        `valid`, of shape (B, S) or (T,), is False for padding. `capacity` replaces the configured
        capacity rule; generation passes `Dropless()`. `ids` are the token ids, in the shape of
        `valid`; only hash routers read them. Raises ValueError if x has other dims, if `valid` is
        not bool, and if `valid` or `ids` has another shape.
        """
        if x.dim() not in (2, 3):
            raise ValueError(
                f"x must be (batch, sequence, width) or (tokens, width), not of shape "
                f"{tuple(x.shape)}; reshape it"
            )
        if valid is not None and (valid.dtype != torch.bool or valid.shape != x.shape[:-1]):
            raise ValueError(
                f"valid must be torch.bool of shape {tuple(x.shape[:-1])}, "
                f"not {valid.dtype} of shape {tuple(valid.shape)}"
            )
        if ids is not None and ids.shape != x.shape[:-1]:
            raise ValueError(f"ids must be of shape {tuple(x.shape[:-1])}, not {tuple(ids.shape)}")
        x_TD = x.reshape(-1, x.shape[-1])
        tokens = Tokens(
            x_TD,
            None if valid is None else valid.reshape(-1),
            # An empty batch counts as one sequence without tokens, because the number of sequences
            # is a divisor.
            max(x.shape[0], 1) if x.dim() == 3 else 1,
            None if ids is None else ids.reshape(-1),
        )
        routing: Routing = self.router(tokens, capacity)
        # x is cast before the experts copy its rows, because bf16 halves the bytes of the copies.
        # The router has read x before the cast.
        x_TD = x_TD.to(compute_dtype(x_TD))
        out_TD = self.experts(x_TD, routing)
        if self.shared is not None:
            out_TD = out_TD + self._shared(x_TD, self.shared)
        if self.residual is not None and self.residual_mix is not None:
            mix_T2 = self.residual_mix(x_TD).softmax(-1)
            out_TD = mix_T2[:, :1] * out_TD + mix_T2[:, 1:] * self.residual(x_TD)
        if not self.training:
            return MoEOutput(out_TD.view(x.shape), routing, {})
        self.config.check_gradient()
        self.balancer.observe(routing)
        losses = self.balancer.losses(routing)
        late = partial(self._late_loss, routing) if "policy" in self.balancer.weights else None
        return MoEOutput(out_TD.view(x.shape), routing, losses, late)

    def _late_loss(self, routing: Routing, nats_T: Tensor) -> Tensor:
        return self.balancer.weights["policy"] * self.router.late_loss(routing, nats_T.detach())

    def _shared(self, x_TD: Tensor, shared: DenseFFN) -> Tensor:
        out_TD = shared(x_TD)
        return out_TD if self.shared_gate is None else row_sigmoid(self.shared_gate(x_TD)) * out_TD


def late_losses(
    outputs: Iterable[MoEOutput | None], nats_T: Tensor
) -> tuple[MoEOutput | None, ...]:
    """The outputs of a model's layers, with the late loss of each layer added to its losses.

    `nats_T` is each token's cross-entropy in nats, from which late losses are computed. Only
    `reinforce` routers have a late loss; its name in `losses` is `policy`.
    """
    return tuple(
        output
        if output is None or output.late_loss is None
        else replace(output, losses={**output.losses, "policy": output.late_loss(nats_T)})
        for output in outputs
    )


def moe_layers(model: nn.Module) -> list[MoE]:
    """The MoE layers of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def end_micro_step(model: nn.Module) -> None:
    """End a micro-step. Under gradient accumulation, call this after each backward pass.

    The next forward pass then adds its load to the load so far; without the call it would replace
    the last load.
    """
    for layer in moe_layers(model):
        layer.balancer.end_micro_step()


def end_step(model: nn.Module) -> list[Tensor]:
    """Update choosing biases and thresholds, and reset the load. Call it after each optimizer step.

    Returns each layer's load_E of the step, summed over all ranks; zeros if no rank had a token.
    """
    layers = moe_layers(model)
    loads = [layer.balancer.end_step(layer.experts.w_in.device) for layer in layers]
    for layer, load_E in zip(layers, loads, strict=True):
        layer.router.step_bias(load_E, layer.config.balance.bias_rate)
        layer.router.end_step(layer.balancer.ranks)
    return loads


def spread_over(model: nn.Module, ranks: Ranks) -> None:
    """Make every MoE layer sum its loads, and its router's statistics, over these ranks."""
    for layer in moe_layers(model):
        layer.balancer.ranks = ranks


def needs_token_counts(model: nn.Module) -> bool:
    """Whether the router of any layer needs the token counts of the training data.

    Hash routers with a balanced table need these counts.
    """
    return any(layer.router.needs_token_counts for layer in moe_layers(model))


def set_token_counts(model: nn.Module, counts_V: Tensor) -> None:
    """Give the token counts of the training data to the routers that need them.

    `counts_V` has the number of occurrences of each token. Raises ConfigError if no router needs
    the counts, and if they do not fit the router's vocabulary.
    """
    if not needs_token_counts(model):
        raise ConfigError(
            "token counts were given to a model without router.table=balanced; leave them out"
        )
    for layer in moe_layers(model):
        if layer.router.needs_token_counts:
            layer.router.set_token_counts(counts_V)
