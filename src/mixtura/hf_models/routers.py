"""Finds the routers of a transformers model, and reads their outputs.

From version 5 of transformers on, a model declares in `_can_record_outputs` which of its modules'
classes return `router_logits`. T tokens, E experts, K experts per token, B sequences of S tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from mixtura.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Decision:
    """The outputs of one call of a router."""

    logits_TE: Tensor | None
    """None for a router that chooses without logits, such as one that hashes tokens"""
    chosen_TK: Tensor
    weight_TK: Tensor
    dropped_TK: Tensor | None = None
    """True for a dropped row, whose expert was full; None for a router without capacity"""


@dataclass(frozen=True, slots=True, eq=False)
class FoundRouter:
    """One router in a model."""

    layer: int
    """the number of the router's block; blocks of a decoder follow those of an encoder"""
    name: str
    """the name of the router in the model"""
    kind: str
    """the name of the router's class"""
    module: nn.Module
    owner: PreTrainedModel
    """the innermost model around the router; its forward gets the tokens and the attention mask"""
    logits_at: int
    """the index of the logits among the router's outputs"""
    experts: nn.Module | None = None
    """for a router that returns only logits, the module whose arguments hold its choices"""

    @property
    def has_logits(self) -> bool:
        """False for a router that hashes tokens, whose choices a bias cannot change."""
        return READERS.get(self.kind) is not _read_hash

    def number(self, name: str) -> int:
        """An integer attribute of the module, such as `top_k`."""
        value = vars(self.module)[name]
        assert isinstance(value, int)
        return value

    def read(self, outputs: tuple[Any, ...]) -> Decision:
        return READERS.get(self.kind, read_choices)(self, outputs)


def read_choices(router: FoundRouter, outputs: tuple[Any, ...]) -> Decision:
    """Read a router that returns logits_TE, weight_TK and chosen_TK, in any order.

    Raises ConfigError for other outputs.
    """
    rest = [
        out for at, out in enumerate(outputs) if at != router.logits_at and isinstance(out, Tensor)
    ]
    for chosen_TK in rest:
        if chosen_TK.is_floating_point() or chosen_TK.dim() != 2:
            continue
        for weight_TK in rest:
            if weight_TK.is_floating_point() and weight_TK.shape == chosen_TK.shape:
                return Decision(outputs[router.logits_at], chosen_TK.long(), weight_TK)
    given = ", ".join(_named(out) for out in outputs)
    raise ConfigError(
        f"router {router.name}: {router.kind} cannot be observed, as it gives ({given}), without "
        "expert numbers and weights of one shape (tokens, top_k)"
    )


def _named(output: object) -> str:
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    return type(output).__name__


def _read_hash(router: FoundRouter, outputs: tuple[Any, ...]) -> Decision:
    found = read_choices(router, outputs)
    return Decision(None, found.chosen_TK, found.weight_TK)


def _read_llama4(router: FoundRouter, outputs: tuple[Any, ...]) -> Decision:
    """Read a router that returns (score_TE, logits_TE), with the score 0 for unchosen experts."""
    score_TE, logits_TE = outputs[0], outputs[router.logits_at]
    chosen_TK = logits_TE.topk(router.number("top_k"), dim=-1).indices
    return Decision(logits_TE, chosen_TK, score_TE.gather(1, chosen_TK))


def _read_switch(router: FoundRouter, outputs: tuple[Any, ...]) -> Decision:
    """Read a router that returns (kept_BSE, weight_BS1, logits_BSE).

    For each token, kept_BSE is 1 for the chosen expert, but 0 for all experts if the token is
    dropped.
    """
    kept_TE, weight_T1 = outputs[0].flatten(0, 1), outputs[1].flatten(0, 1)
    logits_TE = outputs[router.logits_at].flatten(0, 1)
    dropped_T1 = kept_TE.sum(-1, keepdim=True) == 0
    chosen_T1 = torch.where(
        dropped_T1, logits_TE.argmax(-1, keepdim=True), kept_TE.argmax(-1, keepdim=True)
    )
    return Decision(logits_TE, chosen_T1, weight_T1, dropped_T1)


READERS: Mapping[str, Callable[[FoundRouter, tuple[Any, ...]], Decision]] = {
    "Llama4Router": _read_llama4,
    "SwitchTransformersTop1Router": _read_switch,
    "DeepseekV4HashRouter": _read_hash,
}
# Routers that return only logits. Their experts module is called with expert ids and weights.
LOGITS_ALONE = frozenset({"DbrxRouter"})
# Routers that models do not declare in `_can_record_outputs`.
UNNAMED = frozenset({"DeepseekV4HashRouter"})
REFUSED: Mapping[str, str] = {
    "DogeCDMoE": "it chooses by product keys, and has no probability for each expert",
    "JetMoeTopKGating": "its attention is routed as well, and its rows come sorted by expert",
    "NllbMoeTop2Router": "it does not give its second choice",
    "ZayaRouter": "it does not give the tokens that skip the layer",
    "Ernie4_5_VLMoeMoeBlock": "text and images have routers of their own, on parts of a sequence",
}


def find_routers(model: nn.Module) -> tuple[FoundRouter, ...]:
    """The routers of a model, in the order of the model's modules.

    Raises ConfigError for a model without a router, for a router that cannot be read, and for
    expert parallelism, under which a router's outputs do not hold its choices.
    """
    modules = dict(model.named_modules())
    declared = dict(_declared(model))
    found: list[FoundRouter] = []
    for name, module in modules.items():
        for kind, logits_at in declared.items():
            if isinstance(module, kind):
                found.append(_found(modules, name, kind.__name__, logits_at))
        if type(module).__name__ in UNNAMED:
            found.append(_found(modules, name, type(module).__name__, 0))
    if not found:
        raise ConfigError(
            f"{type(model).__name__}: names no router, so there is nothing to observe; give a "
            "mixture-of-experts model of transformers 5"
        )
    _check_experts(modules, found)
    return tuple(_numbered(modules, found))


def _declared(model: nn.Module) -> Iterator[tuple[type[nn.Module], int]]:
    """Classes of modules that return router logits, and the logits' index among their outputs."""
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        recorders = (module._can_record_outputs or {}).get("router_logits", [])
        for recorder in recorders if isinstance(recorders, list) else [recorders]:
            if not isinstance(recorder, OutputRecorder):
                raise ConfigError(
                    f"{type(module).__name__}: says of its router logits only {recorder!r}, so "
                    "they cannot be read; use a model that names an OutputRecorder"
                )
            yield recorder.target_class, recorder.index


def _found(modules: Mapping[str, nn.Module], name: str, kind: str, logits_at: int) -> FoundRouter:
    if kind in REFUSED:
        raise ConfigError(f"router {name}: {kind} cannot be observed, as {REFUSED[kind]}")
    around = list(_around(name))
    owner = next(modules[outer] for outer in around if isinstance(modules[outer], PreTrainedModel))
    assert isinstance(owner, PreTrainedModel)
    experts = None
    if kind in LOGITS_ALONE:
        beside = (f"{outer}.experts" for outer in around)
        experts = next(modules[inner] for inner in beside if inner in modules)
    return FoundRouter(0, name, kind, modules[name], owner, logits_at, experts)


def _around(name: str) -> Iterator[str]:
    """Names of the modules around a module, from the inside out; the last name is '', the model."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _check_experts(modules: Mapping[str, nn.Module], found: list[FoundRouter]) -> None:
    for name, module in modules.items():
        # Every experts module of transformers' experts interface has this attribute.
        parallel = vars(module).get("_is_expert_parallel")
        if parallel is None:
            continue
        if parallel:
            raise ConfigError(
                f"experts {name}: expert parallelism rewrites what routers give, so their choices "
                "cannot be observed; load the model without distributed_config"
            )
        block = next(outer for outer in _around(name) if "experts" not in outer.split("."))
        if not any(router.name.startswith(f"{block}.") for router in found):
            raise ConfigError(
                f"experts {name}: no router is known beside them, so this layer cannot be observed"
            )


def _numbered(modules: Mapping[str, nn.Module], found: list[FoundRouter]) -> Iterator[FoundRouter]:
    """Yield each router with the number of its block as `layer`.

    This number is the first number in the router's name, plus the number of blocks in earlier
    stacks (lists of blocks).
    """
    offsets: dict[str, int] = {}
    total = 0
    for router in found:
        parts = router.name.split(".")
        at = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts))
        stack = ".".join(parts[:at])
        blocks = modules[stack]
        if not isinstance(blocks, nn.ModuleList):
            raise ConfigError(
                f"router {router.name}: lies in no list of blocks, so its layer has no number"
            )
        if stack not in offsets:
            offsets[stack] = total
            total += len(blocks)
        yield replace(router, layer=offsets[stack] + int(parts[at]))
