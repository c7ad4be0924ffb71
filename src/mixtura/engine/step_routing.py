"""Collects, for traces, the experts that each token of a text was routed to in the engine's steps.

S tokens of a text, R rows of a step, K experts per token, N = S K routed rows, T1 = S + 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mixtura.engine.cache_plan import CachePlan, own_kv
from mixtura.engine.program import why_not
from mixtura.engine.runner import CHUNK, Runner, why_alone
from mixtura.engine.steps import Chosen, Routes
from mixtura.models import Decoder, LanguageModel
from mixtura.trace import LayerRows, TraceMeta
from mixtura.tracing.text_trace import RoutingOf

# The fewest positions of a cache. The cache grows with the texts, since a cache for a whole context
# of 128k positions may exceed the memory.
_LEAST_POSITIONS = 4096


def routing_for(model: LanguageModel, meta: TraceMeta) -> RoutingOf | None:
    """A `StepRouting` where the native program supports the model.

    The result is None where the trace needs the model's own forward passes. A trace with
    probabilities always needs them, because the program returns no probabilities.
    """
    if meta.probabilities is not None or not isinstance(model, Decoder):
        return None
    if why_alone(model) is not None or why_not(model) is not None:
        return None
    return StepRouting(model)


class StepRouting:
    """Reads a text as a prompt, in chunks from its beginning; gives the routing by layer."""

    def __init__(self, decoder: Decoder, *, fused: bool | None = None) -> None:
        self._decoder, self._fused = decoder, fused
        self._runner: Runner | None = None

    def __call__(self, tokens: Sequence[int]) -> Mapping[int, LayerRows]:
        runner = self._with_room(len(tokens))
        runner.expect(0, len(tokens))
        token_S = torch.tensor(tokens)
        position_S = torch.arange(len(tokens))
        parts: dict[int, list[Chosen]] = {}
        for token_R, position_R in zip(token_S.split(CHUNK), position_S.split(CHUNK), strict=True):
            routes = Routes()
            slot_R = torch.zeros_like(token_R)
            runner.step(token_R, slot_R, position_R, "prefill", token_R[:0], routes)
            for chosen in routes.chosen:
                parts.setdefault(chosen.layer, []).append(chosen)
        return {layer: rows_of(of_layer) for layer, of_layer in parts.items()}

    def _with_room(self, length: int) -> Runner:
        """A runner for `length` tokens; a new one where the last runner's cache is too small."""
        if self._runner is None or self._runner.plan.context < length:
            room = max(_LEAST_POSITIONS, 1 << (length - 1).bit_length())
            context = min(room, self._decoder.config.context)
            plan = CachePlan(self._decoder.config, 1, context, own_kv(self._decoder))
            # The old cache is freed before the new one is allocated.
            self._runner = None
            self._runner = Runner(self._decoder, plan, self._fused)
        return self._runner


def rows_of(parts: Sequence[Chosen]) -> LayerRows:
    """The routed rows of one layer, from consecutive parts of a text; every token has K rows."""
    expert_SK = np.concatenate([part.expert_RK.numpy() for part in parts])
    weight_SK = np.concatenate([part.weight_RK.numpy() for part in parts])
    tokens, top_k = expert_SK.shape
    expert_N = expert_SK.reshape(-1)
    return LayerRows(
        start_T1=np.arange(tokens + 1) * top_k,
        chosen_N=expert_N,
        weight_N=weight_SK.reshape(-1),
        computed_N=expert_N,
    )
