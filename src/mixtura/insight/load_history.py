"""Sums the expert load of a run into the columns of a heat map.

I log lines, X columns, E experts of one layer.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mixtura.insight.curves import Counts, Curves
from mixtura.moe.load import collapsed, max_over_mean, starving

# Starving experts and collapsed layers are found from the load of this number of last steps.
WINDOW_STEPS = 100


@dataclass(frozen=True, slots=True)
class LayerHistory:
    """The load of one layer, by column and expert."""

    relative_XE: NDArray[np.float64]
    """each expert's load, summed over a column's log lines and divided by the mean over experts;
    1 at even load"""
    max_over_mean_X: NDArray[np.float64]
    recent_E: NDArray[np.int64]
    """the load summed over the last 100 steps, as far as these steps are in the log"""
    starving_E: NDArray[np.bool_]
    collapsed: bool

    @property
    def recent_max_over_mean(self) -> float:
        return float(max_over_mean(torch.from_numpy(self.recent_E)))


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """The load of all layers, and the first and the last step of each column."""

    first_step_X: NDArray[np.int64]
    last_step_X: NDArray[np.int64]
    layers: tuple[LayerHistory, ...]

    @property
    def top(self) -> float:
        """The upper end of the axis for max_over_mean_X: a little above the largest value."""
        return max(1.5, 1.08 * max(float(one.max_over_mean_X.max()) for one in self.layers))


def load_history(curves: Curves, top_k: int, columns: int) -> LoadHistory:
    """Sum the logged load into at most `columns` columns of about equally many log lines.

    At least one log line must have a load.
    """
    count = min(columns, len(curves.step_I))
    bounds = np.linspace(0, len(curves.step_I), count + 1).astype(np.int64)
    recent_I = curves.step_I > curves.step_I[-1] - WINDOW_STEPS
    return LoadHistory(
        first_step_X=curves.step_I[bounds[:-1]],
        last_step_X=curves.step_I[bounds[1:] - 1],
        layers=tuple(
            _layer(load_IE, bounds[:-1], recent_I, top_k=top_k) for load_IE in curves.loads
        ),
    )


def _layer(
    load_IE: Counts, starts: NDArray[np.int64], recent_I: NDArray[np.bool_], *, top_k: int
) -> LayerHistory:
    load_XE = np.add.reduceat(load_IE, starts, axis=0)
    recent_E = torch.from_numpy(load_IE[recent_I].sum(0))
    # The lower bound avoids a division by 0 for a column in which no expert was chosen.
    mean_X1 = np.maximum(load_XE.mean(-1, keepdims=True), 1e-300)
    return LayerHistory(
        relative_XE=load_XE / mean_X1,
        max_over_mean_X=max_over_mean(torch.from_numpy(load_XE)).numpy(),
        recent_E=recent_E.numpy(),
        starving_E=starving(recent_E).numpy(),
        collapsed=bool(collapsed(recent_E, top_k)),
    )
