"""Expert load over the last steps, and the alarms that it gives.

L MoE layers, E experts, W steps in the window.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixtura.moe.load import collapsed, starving

WINDOW = 100


@dataclass(frozen=True, slots=True)
class Alarm:
    """An expert or a layer that has gone wrong over the window; raised once."""

    kind: Literal["starving", "collapsed"]
    layer: int
    """the block's number in the decoder"""
    experts: tuple[int, ...]
    """those that starve, or those that took nearly everything"""
    step: int
    window: int
    """steps that were judged: 100, or a shorter run's all"""

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
    """The load of the last 100 steps, judged once that many are done (or `steps`, if fewer)."""

    def __init__(self, layers: list[int], num_experts: int, top_k: int, steps: int) -> None:
        self.layers, self.top_k = layers, top_k
        self._judged_from = min(WINDOW, steps)
        self._window: deque[Tensor] = deque()
        self.total_LE = torch.zeros(len(layers), num_experts, dtype=torch.int64)
        self._seen_starving_LE = torch.zeros(len(layers), num_experts, dtype=torch.bool)
        self._seen_collapsed_L = torch.zeros(len(layers), dtype=torch.bool)

    def add(self, load_LE: Tensor, step: int) -> tuple[Alarm, ...]:
        """Take one step's load (int64, on the CPU); gives the alarms that are new."""
        self._window.append(load_LE)
        self.total_LE += load_LE
        if len(self._window) > WINDOW:
            self.total_LE -= self._window.popleft()
        return self._new_alarms(step) if len(self._window) >= self._judged_from else ()

    def _new_alarms(self, step: int) -> tuple[Alarm, ...]:
        starving_LE = starving(self.total_LE)
        collapsed_L = collapsed(self.total_LE, self.top_k)
        alarms: list[Alarm] = []
        window = len(self._window)
        for row, layer in enumerate(self.layers):
            new_E = starving_LE[row] & ~self._seen_starving_LE[row]
            if new_E.any():
                experts = tuple(new_E.nonzero().flatten().tolist())
                alarms.append(Alarm("starving", layer, experts, step, window))
            if collapsed_L[row] and not self._seen_collapsed_L[row]:
                busiest = self.total_LE[row].topk(self.top_k).indices
                alarms.append(
                    Alarm("collapsed", layer, tuple(sorted(busiest.tolist())), step, window)
                )
        self._seen_starving_LE |= starving_LE
        self._seen_collapsed_L |= collapsed_L
        return tuple(alarms)

    def state(self) -> dict[str, Tensor]:
        window = list(self._window)
        return {
            "window_WLE": torch.stack(window) if window else self.total_LE.new_zeros(0),
            "seen_starving_LE": self._seen_starving_LE,
            "seen_collapsed_L": self._seen_collapsed_L,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self._window = deque(state["window_WLE"].unbind() if state["window_WLE"].numel() else ())
        self.total_LE = sum(self._window, torch.zeros_like(self.total_LE))
        self._seen_starving_LE = state["seen_starving_LE"].clone()
        self._seen_collapsed_L = state["seen_collapsed_L"].clone()
