"""The two ways to compute a step, side by side, for every kind of packed decoder.

R rows, N rows asked for, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from tests.engine.tiny_families import FAMILIES, HEADS, MOE
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan, KVKind
from mixtura.engine.module_steps import ModuleSteps
from mixtura.engine.program import Program
from mixtura.engine.rope_tables import RopeTables
from mixtura.engine.steps import StepRows, Steps
from mixtura.kernels.native import InstructionSet, instruction_sets
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder, State
from mixtura.models.recurrent_state import RecurrentLayer
from mixtura.models.state import KVLayer
from mixtura.moe.routers import LinearRouter

SETS = cast("tuple[InstructionSet, ...]", instruction_sets())
SLOTS = 40
EIGHT: dict[str, Any] = {**MOE, "num_experts": 8, "top_k": 3}
ROUTERS: dict[str, dict[str, Any]] = {
    "softmax_as_it_is": {"kind": "softmax_topk", "renormalise": False},
    "switch": {"kind": "switch"},
    "dbrx_as_it_is": {"kind": "dbrx", "norm": None},
    "dbrx_squares": {"kind": "dbrx", "norm": 2.0},
    "sigmoid": {"kind": "sigmoid_topk", "scale": 1.5},
    "sigmoid_as_it_is": {"kind": "sigmoid_topk", "renormalise": False},
    "groups_v2": {"kind": "deepseek_v2", "groups": 4, "groups_kept": 2, "scale": 3.0},
    "groups_v3": {"kind": "deepseek_v3", "groups": 4, "groups_kept": 2, "group_top": 2},
}
# 70 experts: more than one block of logits.
OTHERS: dict[str, dict[str, Any]] = {
    "many_experts": {"moe": {**MOE, "num_experts": 70, "top_k": 5}},
    "choosing_bias": {"moe": {**EIGHT, "router": {"kind": "topk_softmax", "choosing_bias": True}}},
    "gate_bias": {"moe": {**EIGHT, "gate_bias": True}},
    "shared": {"moe": {**EIGHT, "shared_width": 24}},
    "dense_first": {"moe": {**MOE, "placement": {"first_dense": 1}}},
    "relu": {"activation": "relu", "moe": MOE},
    "one_head_of_its_own": {"attention": {**HEADS, "heads": 2, "norm": "head", "clip": 1.0}},
    **{
        name: {"moe": {**EIGHT, "router": router, **({"top_k": 1} if name == "switch" else {})}}
        for name, router in ROUTERS.items()
    },
}
REFUSED = {
    "half_dense": "a residual branch beside experts",
    "hash": "router kind=hash",
    "hunyuan": "a norm of queries and keys after rotation",
}
COVERED = [*(family for family in FAMILIES if family not in REFUSED), *OTHERS]
BOUNDS: dict[Phase, float] = {"prefill": 2e-2, "decode": 1e-3}
Pack = Callable[[str], Decoder]


def with_choosing_biases(decoder: Decoder) -> Decoder:
    """They begin at 0, and only training moves them."""
    for router in (module for module in decoder.modules() if isinstance(module, LinearRouter)):
        if router.bias is not None:
            router.bias.copy_(torch.linspace(-0.4, 0.4, len(router.bias)))
    return decoder


def tensors_of(layer: KVLayer | RecurrentLayer) -> list[Tensor]:
    """What the layer keeps of all slots."""
    if isinstance(layer, RecurrentLayer):
        return list(layer.states)
    kv = layer.kv
    parts = (kv.keys, kv.values, kv.key_scales, kv.value_scales)
    return [part for part in parts if part is not None]


@dataclass(frozen=True)
class Pair:
    """Both, each with a state of its own."""

    program: Steps
    modules: Steps
    states: tuple[State, State]

    def assert_equal(self, rows: StepRows, phase: Phase, bound: float | None = None) -> None:
        """The rows' logits are nearly the same; whatever comes next begins from one cache again."""
        everything_N = torch.arange(len(rows))
        with torch.inference_mode():
            found_NV = self.program(rows, phase, everything_N)
            expected_NV = self.modules(rows, phase, everything_N)
            for mine, other in zip(*(state.layers for state in self.states), strict=True):
                for found, into in zip(tensors_of(mine), tensors_of(other), strict=True):
                    into.copy_(found)
        difference_N = (found_NV - expected_NV).abs().amax(1) / expected_NV.abs().max()
        # Norms, gates and turns sum in other orders, so what is rounded may fall on the other side
        # of a tie, for all that see it. In bf16 it seldom does; in two terms of int8 it is little.
        assert (difference_N < (bound or BOUNDS[phase])).all()
        assert difference_N.quantile(0.25) < 1e-4


def pair(decoder: Decoder, kv: KVKind = "fp32", slots: int = 4) -> Pair:
    plan = CachePlan(decoder.config, slots, 48, kv)
    angles, states = RopeTables.of(decoder.config, 48), (plan.allocate(), plan.allocate())
    program = Program(decoder, states[0], angles)
    return Pair(program, ModuleSteps(decoder, states[1], angles), states)


def some_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(23, (count,), generator=torch.Generator().manual_seed(seed))


def chunk(slot: int, start: int, end: int) -> StepRows:
    position_R = torch.arange(start, end)
    token_R = some_tokens(end, seed=slot)[start:]
    return StepRows(token_R, torch.full_like(position_R, slot), position_R, position_R)


def together(*parts: StepRows) -> StepRows:
    fields = ("token_R", "slot_R", "position_R", "angle_R")
    return StepRows(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))
