"""Sums the load of experts over the last 100 steps (the window), and raises alarms.

L MoE layers, E experts of one layer, X experts of all layers in order, W steps in the window.
Layers may have different numbers of experts.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixtura.moe.load import WINDOW, collapsed, starving


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm about starving experts or a collapsed layer.

    In a run each expert is reported as starving at most once, and each layer as collapsed at most
    once.
    """

    kind: Literal["starving", "collapsed"]
    layer: int
    """the block's number in the decoder"""
    experts: tuple[int, ...]
    """the starving experts, or the busiest `top_k` of a collapsed layer"""
    step: int
    window: int
    """the number of steps over which load is summed: 100, or all steps of a shorter run"""

    def __str__(self) -> str:
        experts = ", ".join(map(str, self.experts))
        if self.kind == "starving":
            where = f"layer {self.layer}, expert {experts}: starving"
            what = "under 1/10 of an even share"
        else:
            where = f"layer {self.layer}: collapsed"
            what = f"over 90% of rows chose expert {experts}"
        return f"step {self.step}: {where}, {what} over the last {self.window} steps"


class LoadWatch:
    """The load of the last 100 steps. There are no alarms before min(100, `steps`) steps."""

    def __init__(self, experts: Mapping[int, int], top_k: int, steps: int) -> None:
        """`experts`: the number of experts of each MoE layer, by the layer's number."""
        self.experts, self.top_k = dict(experts), top_k
        self._judged_from = min(WINDOW, steps)
        self._window: deque[Tensor] = deque()
        self._total_X = torch.zeros(sum(experts.values()), dtype=torch.int64)
        self._seen_starving_X = torch.zeros_like(self._total_X, dtype=torch.bool)
        self._seen_collapsed_L = torch.zeros(len(experts), dtype=torch.bool)

    @property
    def total(self) -> list[Tensor]:
        """For each layer, load_E summed over the window."""
        return self._by_layer(self._total_X)

    def add(self, loads: Sequence[Tensor], step: int) -> tuple[Alarm, ...]:
        """Add a step's load_E of each layer (int64, on the CPU); returns the new alarms."""
        load_X = torch.cat([*loads, self._total_X[:0]])
        self._window.append(load_X)
        self._total_X += load_X
        if len(self._window) > WINDOW:
            self._total_X -= self._window.popleft()
        return self._new_alarms(step) if len(self._window) >= self._judged_from else ()

    def _new_alarms(self, step: int) -> tuple[Alarm, ...]:
        alarms: list[Alarm] = []
        window = len(self._window)
        # These tensors are views, so that marking an expert here marks it in _seen_starving_X.
        seen_starving = self._by_layer(self._seen_starving_X)
        rows = zip(self.experts, self.total, seen_starving, self._seen_collapsed_L, strict=True)
        for layer, load_E, seen_E, seen in rows:
            new_E = starving(load_E) & ~seen_E
            if new_E.any():
                experts = tuple(new_E.nonzero().flatten().tolist())
                alarms.append(Alarm("starving", layer, experts, step, window))
                seen_E.logical_or_(new_E)
            if collapsed(load_E, self.top_k) and not seen:
                busiest = load_E.topk(self.top_k).indices
                alarms.append(
                    Alarm("collapsed", layer, tuple(sorted(busiest.tolist())), step, window)
                )
                seen.fill_(True)
        return tuple(alarms)

    def _by_layer(self, values_X: Tensor) -> list[Tensor]:
        return list(values_X.split(list(self.experts.values()))) if self.experts else []

    def state(self) -> dict[str, Tensor]:
        window = list(self._window)
        return {
            "window_WX": torch.stack(window) if window else self._total_X.new_zeros(0),
            "seen_starving_X": self._seen_starving_X,
            "seen_collapsed_L": self._seen_collapsed_L,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        window_WX = _stored(state, "window_WX")
        self._window = deque(window_WX.flatten(1).unbind() if window_WX.numel() else ())
        self._total_X = sum(self._window, torch.zeros_like(self._total_X))
        self._seen_starving_X = _stored(state, "seen_starving_X").flatten().clone()
        self._seen_collapsed_L = state["seen_collapsed_L"].clone()


def _stored(state: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor `name` of a checkpoint.

    In older checkpoints the name and the dims of this tensor have LE in place of X.
    """
    return state[name] if name in state else state[name.replace("X", "LE")]
