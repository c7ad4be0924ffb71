"""Reads a run's logs as arrays: losses, speed and expert load over time.

I log lines, J evaluations, E experts of one layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mixtura.errors import DataError
from mixtura.json_reader import read_lines
from mixtura.runs.folder import RunFolder

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# A log with a larger number is refused, so that sums of its numbers stay within range.
_MOST = 1e18


@dataclass(frozen=True, slots=True)
class Curves:
    """The values that a run logged in training."""

    step_I: Counts
    tokens_I: Counts
    seconds_I: Floats
    """training time so far, without evaluations and checkpoints"""
    loss_I: Floats
    """training loss in nats per token, without the balancing losses"""
    tokens_per_second_I: Floats
    loads: tuple[Counts, ...]
    """for each MoE layer load_IE, the number of rows that chose each expert in the log line's step;
    empty for a dense model"""
    eval_tokens_J: Counts
    bits_per_byte_J: Floats

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read `log.jsonl` and `eval.jsonl`; a missing file is taken as empty.

        Raises DataError for a damaged file.
        """
        try:
            return cls._read(run)
        except DataError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{RunFolder(run).log}: a line of it, or of eval.jsonl, has no number where one "
                f"belongs ({error}); the logs were changed: remove the line"
            ) from error

    @classmethod
    def _read(cls, run: Path) -> Self:
        folder = RunFolder(run)
        # Each line's load becomes an array at once, since a long run's loads need much memory as
        # lists of Python integers.
        log = [
            {**row, "load": [_counts(load_E) for load_E in row.get("load", [])]}
            for _, row in read_lines(folder.log, DataError)
        ]
        evals = [row for _, row in read_lines(folder.evaluations, DataError)]
        return cls(
            step_I=_column(log, "step", np.int64),
            tokens_I=_column(log, "tokens", np.int64),
            seconds_I=_column(log, "seconds", np.float64),
            loss_I=_column(log, "loss", np.float64),
            tokens_per_second_I=_column(log, "tokens_per_second", np.float64),
            loads=_loads(log, folder.log),
            eval_tokens_J=_column(evals, "tokens", np.int64),
            bits_per_byte_J=_column(evals, "heldout_bits_per_byte", np.float64),
        )

    @property
    def eval_seconds_J(self) -> Floats:
        """Training time at each evaluation, interpolated between log lines.

        It is NaN for an evaluation after the last log line.
        """
        if not len(self.tokens_I):
            return np.full(len(self.eval_tokens_J), np.nan)
        tokens, seconds = np.append(0, self.tokens_I), np.append(0.0, self.seconds_I)
        return np.interp(self.eval_tokens_J, tokens, seconds, right=np.nan)


def _column(rows: Sequence[Mapping[str, Any]], key: str, dtype: type[np.generic]) -> NDArray:
    """The values of `key`, one for each line of a log.

    A line without the key has NaN, or 0 if `dtype` is an integer type.
    """
    absent = np.nan if np.issubdtype(dtype, np.floating) else 0
    values = [row.get(key) for row in rows]
    for value in values:
        if value is not None and not (isinstance(value, int | float) and abs(value) <= _MOST):
            raise ValueError(f"{key}={value!r:.40}")
    return np.array([absent if value is None else value for value in values], dtype)


def _counts(load_E: Any) -> Counts:
    """Convert the load of one layer in one log line to an array.

    Raises ValueError if `load_E` is no list of numbers from 0 on.
    """
    counts_E = np.array(load_E, np.int64)
    if counts_E.ndim != 1 or (counts_E < 0).any():
        raise ValueError(f"load={load_E!r:.40}")
    return counts_E


def _loads(rows: Sequence[Mapping[str, Any]], path: Path) -> tuple[Counts, ...]:
    try:
        layers = zip(*(row["load"] for row in rows), strict=True)
        return tuple(np.stack(load_IE) for load_IE in layers)
    except ValueError:
        raise DataError(
            f"{path}: `load` has another shape from line to line; is it the log of two runs?"
        ) from None


def running_mean(values_I: Floats, window: int) -> Floats:
    """For each value, the mean of it and of the `window // 2` values on either side of it.

    NaNs are left out, and there are fewer values at the ends.
    """
    half = max(0, window // 2)
    present_I = np.isfinite(values_I)
    summed_I = np.concatenate([[0.0], np.cumsum(np.where(present_I, values_I, 0.0))])
    counted_I = np.concatenate([[0], np.cumsum(present_I)])
    low_I = np.maximum(np.arange(len(values_I)) - half, 0)
    high_I = np.minimum(np.arange(len(values_I)) + half + 1, len(values_I))
    count_I = (counted_I[high_I] - counted_I[low_I]).astype(np.float64)
    return (summed_I[high_I] - summed_I[low_I]) / np.where(count_I == 0, np.nan, count_I)


def reached(x_J: NDArray[np.number], bits_J: Floats, target: float) -> float | None:
    """The x (tokens, seconds) at which the curve first falls to `target`; None if it never does.

    Between evaluations the curve is taken as a straight line.
    """
    below = np.flatnonzero(bits_J <= target)
    if not len(below):
        return None
    at = int(below[0])
    if at == 0:
        return float(x_J[0])
    part = (bits_J[at - 1] - target) / (bits_J[at - 1] - bits_J[at])
    return float(x_J[at - 1] + part * (x_J[at] - x_J[at - 1]))
