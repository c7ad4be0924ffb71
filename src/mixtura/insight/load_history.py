"""Expert load over a run, in as many steps as a picture can show.

I log lines, X columns of the picture, L MoE layers, E experts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mixtura.insight.curves import Curves
from mixtura.moe.load import collapsed, max_over_mean, starving

# The window over which an expert is judged to starve, and a layer to have collapsed.
JUDGED_STEPS = 100


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """Load by time, layer and expert; even load is 1."""

    first_step_X: NDArray[np.int64]
    last_step_X: NDArray[np.int64]
    relative_XLE: NDArray[np.float64]
    """load over an even share, of all rows that were logged in the column's steps"""
    max_over_mean_XL: NDArray[np.float64]
    recent_LE: NDArray[np.int64]
    """load of the last 100 steps, as far as they were logged"""
    starving_LE: NDArray[np.bool_]
    collapsed_L: NDArray[np.bool_]

    @property
    def recent_max_over_mean_L(self) -> NDArray[np.float64]:
        return max_over_mean(torch.from_numpy(self.recent_LE)).numpy()


def load_history(curves: Curves, top_k: int, columns: int) -> LoadHistory:
    """Sum the logged load into at most `columns` columns of about as many log lines each.

    The log must hold at least one line with a load.
    """
    count = min(columns, len(curves.step_I))
    bounds = np.linspace(0, len(curves.step_I), count + 1).astype(np.int64)
    load_XLE = np.add.reduceat(curves.load_ILE, bounds[:-1], axis=0)
    recent = curves.step_I > curves.step_I[-1] - JUDGED_STEPS
    recent_LE = torch.from_numpy(curves.load_ILE[recent].sum(0))
    load = torch.from_numpy(load_XLE)
    # A column without a row, as of a layer that saw no token, shows as even.
    mean_XL1 = np.maximum(load_XLE.mean(-1, keepdims=True), 1e-300)
    return LoadHistory(
        first_step_X=curves.step_I[bounds[:-1]],
        last_step_X=curves.step_I[bounds[1:] - 1],
        relative_XLE=load_XLE / mean_XL1,
        max_over_mean_XL=max_over_mean(load).numpy(),
        recent_LE=recent_LE.numpy(),
        starving_LE=starving(recent_LE).numpy(),
        collapsed_L=collapsed(recent_LE, top_k).numpy(),
    )
