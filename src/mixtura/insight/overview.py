"""Collects the numbers, the curves and the expert load of the page as plain data.

I log lines, J evaluations, X columns of a heat map, E experts of one layer.
"""

from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.errors import DataError
from mixtura.insight.curves import reached, running_mean
from mixtura.insight.load_history import WINDOW_STEPS, load_history
from mixtura.insight.recorded_run import RecordedRun
from mixtura.runs.folder import RunFolder

Tree = dict[str, Any]

# The most points of a line, and the most columns of a heat map.
_POINTS = 1500
_COLUMNS = 72
# The smoothed loss is a running mean over this share of the log lines. A larger share would no
# longer follow the loss.
_SMOOTHED = 1 / 40


def listed(values: NDArray, digits: int | None = None) -> list[Any]:
    """Plain numbers, rounded to `digits` if given; None for NaN and infinity, which JSON lacks."""
    plain = values.tolist() if digits is None else np.round(values, digits).tolist()
    return [_finite(value) for value in plain]


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if isinstance(value, int) or isfinite(value) else None


def overview(run: RecordedRun, twin: RecordedRun | None) -> Tree:
    """The values of the page's keys `runs`, `comparison`, `smoothing` and `load`."""
    runs = [run] if twin is None else [run, twin]
    window = max(1, round(len(run.curves.loss_I) * _SMOOTHED))
    return {
        "runs": [_run(one, _label(one, one is twin), one is twin, window) for one in runs],
        "smoothing": 2 * (window // 2) + 1,
        "comparison": None if twin is None else comparison(run, twin),
        "load": _load(run),
    }


def _label(run: RecordedRun, is_twin: bool) -> str:
    if run.moe_layers:
        return run.name[:14] if is_twin else "MoE"
    return "dense twin" if is_twin else "dense"


def _run(run: RecordedRun, label: str, is_twin: bool, window: int) -> Tree:
    curves = run.curves
    thin = _thinned(len(curves.loss_I))
    mean_I = running_mean(curves.loss_I, window)
    evaluated = len(curves.bits_per_byte_J) > 0
    return {
        "who": "twin" if is_twin else "moe",
        "label": label,
        "total": run.model.total_parameters(),
        "active": run.model.active_parameters("A"),
        "flops": run.model.flops_per_token(run.length),
        "speed": _median(curves.tokens_per_second_I),
        "bits": _finite(float(curves.bits_per_byte_J[-1])) if evaluated else None,
        "bits_tokens": int(curves.eval_tokens_J[-1]) if evaluated else None,
        "curve": {
            "tokens": listed(curves.tokens_I[thin]),
            "seconds": listed(curves.seconds_I[thin], 2),
            "loss": listed(curves.loss_I[thin], 4),
            "mean": listed(mean_I[thin], 4),
            "eval_tokens": listed(curves.eval_tokens_J),
            "eval_seconds": listed(curves.eval_seconds_J, 2),
            "bits": listed(curves.bits_per_byte_J, 5),
        },
    }


def _median(values: NDArray) -> float | None:
    """The median of the finite values; None if there are none.

    Unlike a mean, it is hardly affected by a slow first step.
    """
    present = values[np.isfinite(values)]
    return float(np.median(present)) if len(present) else None


def _thinned(count: int) -> NDArray[np.int64]:
    """At most `_POINTS` indices into `count` values, evenly spaced from the first to the last."""
    even = np.linspace(0, max(0, count - 1), min(count, _POINTS))
    return np.unique(even.round().astype(np.int64))


def comparison(run: RecordedRun, twin: RecordedRun) -> Tree | None:
    """Both runs' results after the largest number of tokens at which both were evaluated.

    Returns None if there is no such number. `sooner` has the tokens and the seconds at which `run`
    reached the twin's result, beside the twin's own.
    """
    run_curves, twin_curves = run.curves, twin.curves
    common = np.intersect1d(run_curves.eval_tokens_J, twin_curves.eval_tokens_J)
    if not len(common):
        return None
    tokens = int(common[-1])
    at_run = int(np.flatnonzero(run_curves.eval_tokens_J == tokens)[0])
    at_twin = int(np.flatnonzero(twin_curves.eval_tokens_J == tokens)[0])
    target = float(twin_curves.bits_per_byte_J[at_twin])
    sooner = {}
    for axis, run_axis, twin_axis in (
        ("tokens", run_curves.eval_tokens_J, twin_curves.eval_tokens_J),
        ("seconds", run_curves.eval_seconds_J, twin_curves.eval_seconds_J),
    ):
        when = reached(run_axis, run_curves.bits_per_byte_J, target)
        if when is not None and isfinite(when) and when > 0:
            sooner[axis] = {"run": when, "twin": float(twin_axis[at_twin])}
    return {
        "tokens": tokens,
        "run": float(run_curves.bits_per_byte_J[at_run]),
        "twin": target,
        "sooner": sooner,
    }


def _recent(run: RecordedRun) -> str:
    steps = min(WINDOW_STEPS, run.done)
    return f"last {steps} steps" + ("" if run.recent_max_over_mean else ", as logged")


def _load(run: RecordedRun) -> Tree | None:
    if run.model.moe is None or not run.curves.loads:
        return None
    logged, built = len(run.curves.loads), len(run.moe_layers)
    if logged != built:
        raise DataError(
            f"{RunFolder(run.folder).log}: has the load of {logged} MoE layers, and the recipe has "
            f"{built}; is it another run's?"
        )
    history = load_history(run.curves, run.model.moe.top_k, _COLUMNS)
    # The summary is preferred: it covers every step, but the log may have only one step in ten.
    recent = run.recent_max_over_mean or [one.recent_max_over_mean for one in history.layers]
    if len(recent) != built:
        raise DataError(
            f"{run.folder / 'summary.json'}: has load_max_over_mean of {len(recent)} MoE layers, "
            f"and the recipe has {built}; remove the file"
        )
    return {
        "first": listed(history.first_step_X),
        "last": listed(history.last_step_X),
        "top_k": run.model.moe.top_k,
        "recent": _recent(run),
        "top": history.top,
        "layers": [
            {
                "layer": layer,
                "relative": listed(one.relative_XE.T, 3),
                "max": listed(one.max_over_mean_X, 3),
                "recent": busiest,
                "starving": np.flatnonzero(one.starving_E).tolist(),
                "collapsed": one.collapsed,
            }
            for layer, one, busiest in zip(run.moe_layers, history.layers, recent, strict=True)
        ],
    }
