"""Adds balancing to any mixture-of-experts model of transformers, through hooks.

E experts, K experts per token.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from transformers.utils.generic import ModelOutput

from mixtura.config import Config
from mixtura.errors import ConfigError
from mixtura.hf_models.choosing_bias import ChoosingBias, find_bias
from mixtura.hf_models.layer_load import LayerLoad, LayerReport
from mixtura.hf_models.observation import Observation, WeightFunction
from mixtura.hf_models.own_loss import own_losses_disabled
from mixtura.hf_models.reentrant_gradients import gradient_probe, with_attached_loss
from mixtura.hf_models.routers import Decision, FoundRouter
from mixtura.hf_models.scores import KNOWN, ScoreName
from mixtura.hf_models.step_share import share_of_step
from mixtura.moe.balance import BalanceConfig, Balancer
from mixtura.moe.routers.softmax import SoftmaxTopKConfig
from mixtura.moe.routing import Routing
from mixtura.moe.shares import LossScope

T = TypeVar("T")

if TYPE_CHECKING:
    # Trainer imports accelerate, which a training loop of the user's own may lack.
    from transformers import Trainer


class BalancingConfig(Config):
    """The losses that are added to a model's loss, and the updates of its choosing biases."""

    balance: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """weight of Switch's loss E * sum_e f_e * P_e, where f_e is the load share of expert e and P_e
    its mean probability; the loss is averaged over layers and is 1 at even load"""
    z_loss: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """weight of the z-loss, the mean squared logsumexp of the logits"""
    bias_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """step size of the choosing bias (gamma of DeepSeek-V3), for models that have such a bias"""
    scope: LossScope = "sequence"
    """the tokens over which Switch's loss is computed"""
    scale: Literal["switch", "transformers"] = "switch"
    """`transformers` multiplies `balance` by K, as in transformers' own loss"""
    keep_own_loss: bool = False
    """whether the model's own router loss, which pools all layers, is added too"""
    scores: Literal["auto"] | ScoreName = "auto"
    """the score function of the model's routers; see `observe_routing`"""


def attach_balancing(
    model: nn.Module,
    *,
    balance: float = 0.01,
    z_loss: float = 0.0,
    bias_rate: float = 0.0,
    scope: LossScope = "sequence",
    scale: Literal["switch", "transformers"] = "switch",
    keep_own_loss: bool = False,
    scores: Literal["auto"] | ScoreName = "auto",
) -> "Balancing":
    """Balance every MoE layer of `model` from now on; `BalancingConfig` describes the arguments.

    In training, the loss that the model returns includes the balancing losses; in evaluation it
    does not. `model` must be the module that is called, such as the result of `get_peft_model`.
    Choosing biases are updated after each step of an optimizer that has a parameter of the model.
    Raises ConfigError for a model or an argument that cannot be used.
    """
    config = BalancingConfig.parse(
        {
            "balance": balance,
            "z_loss": z_loss,
            "bias_rate": bias_rate,
            "scope": scope,
            "scale": scale,
            "keep_own_loss": keep_own_loss,
            "scores": scores,
        },
        origin="attach_balancing",
    )
    return Balancing(model, config)


@dataclass(slots=True)
class _Layer:
    balancer: Balancer
    load: LayerLoad
    device: torch.device


@dataclass(slots=True)
class _Pass:
    """One forward pass of the whole model."""

    trains: bool
    """whether the pass is part of training"""
    around: ExitStack
    routings: list[tuple[FoundRouter, Routing]] = field(default_factory=list)
    share: Tensor | float = 1.0
    """the pass's share of the optimizer step's loss"""
    layers: int = 0
    """the number of layers with a loss"""
    recomputed_later: dict[FoundRouter, Routing] = field(default_factory=dict)
    """routings, by router, of layers that the backward pass will run again with gradients"""
    scale: Tensor | None = None
    """gradient of the total loss with respect to the pass's balancing loss; None before backward"""


class Balancing:
    """The result of `attach_balancing`: active until `detach()` or the end of a `with` block."""

    def __init__(self, model: nn.Module, config: BalancingConfig) -> None:
        self.config = config
        self._model = model
        self._layers: dict[FoundRouter, _Layer] = {}
        self._pass: _Pass | None = None
        self._in_backward: _Pass | None = None
        self._pending_loss: Tensor | None = None
        self._passes_of_step = 0
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._observation = Observation(model, self._on_routing, config.scores, self._on_recomputed)
        try:
            self._biases = self._find_biases()
            self._check_z_loss()
        except ConfigError:
            self._observation.detach()
            raise
        self._handles = [
            *self._hook(model),
            register_optimizer_step_post_hook(self._on_optimizer_step),
        ]

    def detach(self) -> None:
        """Remove every hook; the model keeps its present weights."""
        self._observation.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def take_loss(self) -> Tensor:
        """The last pass's balancing loss, for a training loop that computes its loss from logits.

        It is weighted and averaged over layers. Raises ConfigError if the model's loss includes it,
        or if it was taken before.
        """
        if self._pending_loss is None:
            raise ConfigError(
                "the balancing loss is in the loss that the model returned, or was taken before; "
                "use output.loss, or call the model in training mode without labels"
            )
        taken, self._pending_loss = self._pending_loss, None
        return taken

    def end_step(self) -> None:
        """End an optimizer step: update the choosing biases, and begin a new count of the load.

        A step of a torch optimizer that has parameters of the model calls this automatically. For
        another kind of optimizer, such as DeepSpeed's, call this method after each step.
        """
        # For a second optimizer in the same step, there is no new pass and nothing to do.
        if not self._passes_of_step:
            return
        self._passes_of_step = 0
        for router, layer in self._layers.items():
            load_E = layer.balancer.end_step(layer.device)
            layer.load.add(load_E)
            if router in self._biases:
                self._biases[router].step(load_E, self.config.bias_rate)

    def report(self) -> tuple[LayerReport, ...]:
        """Each layer's load over the last 100 optimizer steps. This waits for the device."""
        reports = (layer.load.report() for layer in self._layers.values())
        return tuple(report for report in reports if report is not None)

    def take_log(self) -> dict[str, float]:
        """Return values for a logger, by name. This waits for the device.

        `moe/balance_loss` (1 at even load) and `moe/z_loss` are means over the passes since the
        last call, without their weights. `moe/layer_NN/max_over_mean` is computed from the load
        since the last call. `moe/collapsed_layers` and `moe/starving_experts` count layers and
        experts by the load of the last 100 steps.
        """
        log = {
            f"moe/{name}_loss": total.item() / self._summed for name, total in self._sums.items()
        }
        self._sums, self._summed = {}, 0
        for layer in self._layers.values():
            busiest = layer.load.take_max_over_mean()
            if busiest is not None:
                log[f"moe/layer_{layer.load.layer:02d}/max_over_mean"] = busiest
        reports = self.report()
        log["moe/collapsed_layers"] = float(sum(report.collapsed for report in reports))
        log["moe/starving_experts"] = float(sum(len(report.starving) for report in reports))
        return log

    def log_to(self, trainer: "Trainer") -> None:
        """Add `take_log()` to each training record that `trainer` logs, for all of its loggers."""
        log = trainer.log

        def with_balance(logs: dict[str, float], start_time: float | None = None) -> None:
            # Records of evaluation have no key "loss"; after `detach` there is nothing to add.
            if "loss" in logs and self._handles:
                logs.update(self.take_log())
            log(logs, start_time)

        # A callback would be too late: Trainer first writes `logs` to its history and TensorBoard.
        trainer.log = with_balance

    def _find_biases(self) -> dict[FoundRouter, ChoosingBias]:
        if not self.config.bias_rate:
            return {}
        modules = dict(self._model.named_modules())
        routers = [router for router in self._observation.routers if router.has_logits]
        return {router: find_bias(modules, router) for router in routers}

    def _check_z_loss(self) -> None:
        for router in self._observation.routers:
            if self.config.z_loss and KNOWN.get(router.kind) == "probabilities":
                raise ConfigError(
                    f"layer {router.layer}: router {router.name} gives probabilities and no "
                    f"logits, so z_loss={self.config.z_loss} has no meaning; set z_loss=0"
                )

    def _hook(self, model: nn.Module) -> list[RemovableHandle]:
        # A copy of the model has the same hooks, so each hook acts only when `model` calls it.
        def begin(module: nn.Module, _: object) -> None:
            if module is model:
                self._begin()

        def end(module: nn.Module, _: object, kwargs: dict[str, Any], output: Any) -> Any:
            return self._end(kwargs, output) if module is model else None

        return [
            model.register_forward_pre_hook(begin),
            model.register_forward_hook(end, with_kwargs=True, always_call=True),
        ]

    def _begin(self) -> None:
        if self._pending_loss is not None:
            self._pending_loss = None
            raise ConfigError(
                "the last training pass had no labels, so its balancing loss reached no loss; give "
                "labels to the model, or add balancing.take_loss() to the loss that you compute"
            )
        around = ExitStack()
        if not self.config.keep_own_loss:
            around.enter_context(own_losses_disabled(self._model))
        self._pass = _Pass(self._model.training and torch.is_grad_enabled(), around)

    def _on_routing(self, router: FoundRouter, routing: Routing) -> None:
        if self._pass is not None:
            self._pass.routings.append((router, routing))
        elif router.owner.training and torch.is_grad_enabled():
            raise ConfigError(
                f"the model was called around the {type(self._model).__name__} that balancing is "
                "attached to, which drops its losses; attach it to the module that is called"
            )

    def _end(self, kwargs: dict[str, Any], output: Any) -> Any:
        done, self._pass = self._pass, None
        if done is None:
            return None
        done.around.close()
        if output is None or not done.trains or not done.routings:
            return None
        done.share = share_of_step(self._model, kwargs)
        loss = self._loss(done)
        self._passes_of_step += 1
        if loss is None:
            return None
        if isinstance(output, ModelOutput) and output.get("loss") is not None:
            output["loss"] = output["loss"] + loss.to(output["loss"].device)
        elif isinstance(output, tuple) and kwargs.get("labels") is not None:
            return (output[0] + loss.to(output[0].device), *output[1:])
        else:
            self._pending_loss = loss
        return None

    def _loss(self, done: _Pass) -> Tensor | None:
        """Sum the pass's weighted losses, averaged over layers; None if there is no loss."""
        by_layer: list[dict[str, Tensor]] = []
        for router, routing in done.routings:
            layer = self._layer(router, routing)
            # Without this call, a layer used twice in one pass would count only its second use.
            layer.balancer.end_micro_step()
            layer.balancer.observe(routing)
            if routing.probs_TE is None:
                continue
            by_layer.append(layer.balancer.losses(routing))
            if not routing.probs_TE.requires_grad:
                done.recomputed_later[router] = routing
        done.layers = len(by_layer)
        if not by_layer or not by_layer[0]:
            return None
        device = next(iter(by_layer[0].values())).device
        means = {
            name: torch.stack([losses[name].to(device) for losses in by_layer]).mean()
            for name in by_layer[0]
        }
        self._add_to_log(means)
        loss = done.share * torch.stack(list(means.values())).sum()
        if done.recomputed_later:
            loss = loss + gradient_probe(partial(self._on_backward, done), device)
        return loss

    def _layer(self, router: FoundRouter, routing: Routing) -> _Layer:
        if router not in self._layers:
            assert routing.top_k is not None
            factor = routing.top_k if self.config.scale == "transformers" else 1
            config = BalanceConfig(
                loss=self.config.balance * factor,
                z_loss=self.config.z_loss,
                scope=self.config.scope,
            )
            self._layers[router] = _Layer(
                # Balancer reads the router's config only for loss weights that `config` leaves out.
                Balancer(config, SoftmaxTopKConfig(), routing.num_experts, _ProcessGroup()),
                LayerLoad(router.layer, router.name, routing.top_k),
                routing.chosen_N.device,
            )
        return self._layers[router]

    def _add_to_log(self, means: dict[str, Tensor]) -> None:
        weights = next(iter(self._layers.values())).balancer.weights
        self._summed += 1
        for name, mean in means.items():
            value = mean.detach() / {str(key): weight for key, weight in weights.items()}[name]
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _on_backward(self, done: _Pass, scale: Tensor) -> None:
        # Autograd runs the latest nodes first. If one backward pass covers two forward passes, it
        # completes the nodes of the second before it reaches this node of the first.
        done.scale, self._in_backward = scale, done

    def _on_recomputed(self, router: FoundRouter, decision: Decision) -> WeightFunction | None:
        done = self._in_backward
        earlier = None if done is None else done.recomputed_later.pop(router, None)
        if done is None or earlier is None or done.scale is None:
            return None
        routing = self._observation.translation(
            router, decision, earlier.num_sequences, earlier.valid_T
        )
        losses = self._layers[router].balancer.losses(routing)
        loss = done.share * sum(losses.values(), torch.zeros(())) / done.layers
        return partial(with_attached_loss, loss=loss, scale=done.scale)

    def _on_optimizer_step(self, optimizer: Optimizer, *_: object) -> None:
        # The steps of accelerate's wrapper are ignored, because it may skip the step of the
        # optimizer inside it. Each step of that inner optimizer calls this method too.
        if isinstance(vars(optimizer).get("optimizer"), Optimizer):
            return
        own_ids = {id(parameter) for parameter in self._model.parameters()}
        if any(id(p) in own_ids for group in optimizer.param_groups for p in group["params"]):
            self.end_step()


class _ProcessGroup:
    """torch's default process group as `Ranks`; a single rank while there is no group.

    The group is looked up at each call, since a trainer may start it after `attach_balancing`.
    """

    @property
    def _has_group(self) -> bool:
        return torch.distributed.is_available() and torch.distributed.is_initialized()

    @property
    def index(self) -> int:
        return torch.distributed.get_rank() if self._has_group else 0

    @property
    def count(self) -> int:
        return torch.distributed.get_world_size() if self._has_group else 1

    def sum(self, of: T) -> T:
        if self._has_group:
            assert isinstance(of, Tensor), "only tensors are summed"
            torch.distributed.all_reduce(of)
        return of

    def barrier(self) -> None:
        if self._has_group:
            torch.distributed.barrier()
