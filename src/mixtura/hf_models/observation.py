"""Observes the routing of a transformers model during its forward passes, by hooks.

T tokens, E experts, K experts per token, N = T*K routed rows, B sequences of S tokens.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mixtura.errors import ConfigError
from mixtura.hf_models.routers import Decision, FoundRouter, find_routers
from mixtura.hf_models.scores import ScoreName
from mixtura.hf_models.translation import Translation
from mixtura.moe.routing import Routing

WeightFunction = Callable[[Tensor], Tensor]
OnRecomputed = Callable[[FoundRouter, Decision], WeightFunction | None]
"""Called with a router's outputs while a backward pass runs the router's layer again, with
gradients. It may return a function, which is then applied to the router's combine weights."""


def observe_routing(
    model: nn.Module,
    on_routing: Callable[[int, Routing], None],
    scores: Literal["auto"] | ScoreName = "auto",
) -> "Observation":
    """Call `on_routing(layer, routing)` for each MoE layer at the end of each forward pass.

    `layer` is the number of the layer's block; blocks of a decoder are numbered after those of an
    encoder. Logits and probabilities are in the autograd graph, except under reentrant
    checkpointing, whose forward pass has no graph. A layer that checkpointing runs again is not
    reported again. Padding is read from a 2-D `attention_mask`. Combine weights are proportional to
    scores, and `scores` names the function from logits to scores; `auto` finds this function by
    comparing logits and weights. Raises ConfigError for a model whose routing cannot be read.
    """
    return Observation(model, lambda router, routing: on_routing(router.layer, routing), scores)


@dataclass(slots=True)
class _Forward:
    """A forward pass that is still running."""

    module: nn.Module
    num_sequences: int
    tokens: int
    valid_T: Tensor | None
    outputs: list[tuple[FoundRouter, tuple[Any, ...]]] = field(default_factory=list)


class Observation:
    """Hooks that report a model's routing, until `detach()` or the end of a `with` block."""

    def __init__(
        self,
        model: nn.Module,
        on_routing: Callable[[FoundRouter, Routing], None],
        scores: Literal["auto"] | ScoreName = "auto",
        on_recomputed: OnRecomputed | None = None,
    ) -> None:
        self.routers = find_routers(model)
        self.translation = Translation(scores)
        self._on_routing, self._on_recomputed = on_routing, on_recomputed
        self._running: list[_Forward] = []
        self._handles: list[RemovableHandle] = []
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                self._hook_model(module)
        for router in self.routers:
            self._hook_router(router)

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    # A copy of the model has the same hooks. So each hook compares its module, and a copy reports
    # nothing.

    def _hook_model(self, model: PreTrainedModel) -> None:
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is model:
                self._begin(model, args, kwargs)

        def end(module: nn.Module, _: object, output: object) -> None:
            if module is model:
                self._end(model, finished=output is not None)

        self._handles += [
            model.register_forward_pre_hook(begin, with_kwargs=True),
            model.register_forward_hook(end, always_call=True),
        ]

    def _hook_router(self, router: FoundRouter) -> None:
        logits: list[Tensor] = []

        def router_called(module: nn.Module, _: object, output: Any) -> Any:
            if module is not router.module:
                return None
            if router.experts is not None:
                logits[:] = [output]
                return None
            function = self._record(router, output if isinstance(output, tuple) else (output,))
            return None if function is None else _with_weights(router, output, function)

        def experts_called(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if module is not router.experts:
                return None
            x_TD, chosen_TK, weight_TK = args
            function = self._record(router, (logits.pop(), weight_TK, chosen_TK))
            return None if function is None else (x_TD, chosen_TK, function(weight_TK))

        self._handles.append(router.module.register_forward_hook(router_called))
        if router.experts is not None:
            self._handles.append(router.experts.register_forward_pre_hook(experts_called))

    def _begin(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.signature(model.forward).parameters
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        tokens = given.get("inputs_embeds") if ids is None else ids
        num_sequences, length, valid_T = 1, 0, None
        if isinstance(tokens, Tensor) and tokens.dim() >= 2:
            num_sequences, length = tokens.shape[:2]
            valid_T = self._valid(model, given.get("attention_mask"), num_sequences, length)
        self._running.append(_Forward(model, num_sequences, num_sequences * length, valid_T))

    def _valid(
        self, model: PreTrainedModel, mask: object, num_sequences: int, length: int
    ) -> Tensor | None:
        """valid_T from a mask of (B, S), or of (B, past + S) with a KV cache; None for no mask."""
        if mask is None:
            return None
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= length:
            return mask[:, mask.shape[1] - length :].reshape(-1).bool()
        # An outer model has converted the mask for this inner model, but itself got the 2-D mask.
        tokens = num_sequences * length
        for outer in reversed(self._running):
            if outer.valid_T is not None and len(outer.valid_T) == tokens:
                return outer.valid_T
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(
            f"{type(model).__name__}: padding cannot be read from attention_mask={found}; give "
            "one of shape (batch, sequence), or none"
        )

    def _end(self, model: PreTrainedModel, *, finished: bool) -> None:
        # A forward pass that failed before its `begin` hook is not in the list.
        if not self._running or self._running[-1].module is not model:
            return
        forward = self._running.pop()
        if not finished:
            return
        # Outputs are read here, after all layers have run. Inside a checkpointed layer, the reading
        # would save tensors for backward, which the layer's second run would not compute again.
        called_layers = {router.layer for router, _ in forward.outputs}
        for router in self.routers:
            if router.owner is model and router.layer not in called_layers:
                raise ConfigError(
                    f"layer {router.layer}: the forward pass ended, and router {router.name} was "
                    "not called, so a fused kernel or a copy may stand in for it; switch kernels "
                    "off, or attach after the model is in its final form"
                )
        for router, outputs in forward.outputs:
            self._on_routing(router, self._routing(router, router.read(outputs), forward))

    def _record(self, router: FoundRouter, outputs: tuple[Any, ...]) -> WeightFunction | None:
        if self._running and self._running[-1].module is router.owner:
            self._running[-1].outputs.append((router, outputs))
        elif self._on_recomputed is not None and torch.is_grad_enabled():
            return self._on_recomputed(router, router.read(outputs))
        return None

    def _routing(self, router: FoundRouter, decision: Decision, forward: _Forward) -> Routing:
        tokens = len(decision.chosen_TK)
        if tokens != forward.tokens:
            raise ConfigError(
                f"layer {router.layer}: router {router.name} was given {tokens} tokens of a batch "
                f"of {forward.tokens}, so it is unknown which; give input_ids or inputs_embeds of "
                "shape (batch, sequence, ...) to the model"
            )
        return self.translation(router, decision, forward.num_sequences, forward.valid_T)


def _with_weights(router: FoundRouter, output: Any, function: WeightFunction) -> Any:
    """A router's output, with `function` applied to the combine weights in it."""
    if not isinstance(output, tuple):
        return function(output)
    weights_at = next(
        at
        for at, out in enumerate(output)
        if at != router.logits_at and isinstance(out, Tensor) and out.is_floating_point()
    )
    return (*output[:weights_at], function(output[weights_at]), *output[weights_at + 1 :])
