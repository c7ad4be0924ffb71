"""Sums the load of one layer over the last optimizer steps. E experts."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.moe.load import WINDOW, collapsed, max_over_mean, starving


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The load of one layer over the last 100 optimizer steps, or over all steps if fewer."""

    layer: int
    """the number of the layer's block"""
    router: str
    """the router's name in the model"""
    steps: int
    """the number of optimizer steps that the report covers"""
    load: tuple[int, ...]
    """for each expert, the number of rows that chose it in these steps, on all ranks"""
    max_over_mean: float
    """the busiest expert's load divided by the mean load; 1 at even load"""
    collapsed: bool
    """whether over 90% of the rows chose the busiest top_k experts"""
    starving: tuple[int, ...]
    """experts whose load is under a tenth of an even share"""

    def __str__(self) -> str:
        words = [f"layer {self.layer}: busiest over mean {self.max_over_mean:.2f}"]
        if self.collapsed:
            words.append("collapsed")
        if self.starving:
            words.append(f"starving experts {', '.join(map(str, self.starving))}")
        return f"{'; '.join(words)}, over {self.steps} steps"


class LayerLoad:
    """Keeps the loads of the last steps on the device; `report` copies their sum to the CPU."""

    def __init__(self, layer: int, router: str, top_k: int) -> None:
        self.layer, self.router, self.top_k = layer, router, top_k
        self._window: deque[Tensor] = deque(maxlen=WINDOW)
        self._unlogged_E: Tensor | None = None

    def add(self, load_E: Tensor) -> None:
        """Add an optimizer step's load."""
        self._window.append(load_E)
        self._unlogged_E = load_E if self._unlogged_E is None else self._unlogged_E + load_E

    def report(self) -> LayerReport | None:
        """The layer's report; None before the first step."""
        if not self._window:
            return None
        load_E = torch.stack(list(self._window)).sum(0).cpu()
        return LayerReport(
            layer=self.layer,
            router=self.router,
            steps=len(self._window),
            load=tuple(load_E.tolist()),
            max_over_mean=float(max_over_mean(load_E)),
            collapsed=bool(collapsed(load_E, self.top_k)),
            starving=tuple(starving(load_E).nonzero().flatten().tolist()),
        )

    def take_max_over_mean(self) -> float | None:
        """`max_over_mean` for the steps since the last call; None if there was no step."""
        load_E, self._unlogged_E = self._unlogged_E, None
        return None if load_E is None else float(max_over_mean(load_E))
