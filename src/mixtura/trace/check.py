"""Checks a batch before the batch is written to a trace.

T tokens, T1 is T + 1, E experts; N rows of a layer, one for each expert that a token chose.
"""

import numpy as np

from mixtura.errors import DataError
from mixtura.trace.batch import ABSENT, LayerRows, TraceBatch
from mixtura.trace.meta import TracedLayer, TraceMeta

_MOST = 2**31


def check_batch(batch: TraceBatch, meta: TraceMeta, num_domains: int) -> None:
    """Raise DataError for a value out of range, or for an array of the wrong length."""
    for name, of_T, bound in (
        ("id", batch.id_T, meta.vocabulary),
        ("position", batch.position_T, _MOST),
        ("sequence", batch.sequence_T, _MOST),
    ):
        _check_length(name, len(of_T), len(batch), "tokens")
        _check_range(name, of_T, 0, bound - 1)
    _check_length("domain", len(batch.domain_T), len(batch), "tokens")
    _check_range("domain", batch.domain_T, ABSENT, num_domains - 1)
    if set(batch.layers) != set(meta.numbers):
        raise DataError(
            f"layers {sorted(batch.layers)} were given, and the trace is of layers "
            f"{list(meta.numbers)}"
        )
    for layer in meta.layers:
        _check_layer(batch.layers[layer.layer], layer, len(batch), meta)


def _check_layer(rows: LayerRows, layer: TracedLayer, tokens: int, meta: TraceMeta) -> None:
    name, last = f"layer {layer.layer}", layer.num_experts - 1
    _check_length(f"{name}: start", len(rows.start_T1), tokens + 1, "tokens and one more")
    if rows.start_T1[0] != 0 or (np.diff(rows.start_T1) < 0).any():
        raise DataError(f"{name}: start must begin with 0 and never fall")
    for what, of_N in (
        ("experts", rows.chosen_N),
        ("weights", rows.weight_N),
        ("computed_by", rows.computed_N),
    ):
        _check_length(f"{name}: {what}", len(of_N), int(rows.start_T1[-1]), "rows")
    _check_range(f"{name}: expert", rows.chosen_N, 0, last)
    _check_range(f"{name}: computed_by", rows.computed_N, ABSENT, last)
    if meta.probabilities is None:
        return
    found = None if rows.probs_TE is None else rows.probs_TE.shape
    if found != (tokens, layer.num_experts):
        given = "none" if found is None else f"an array of {found}"
        raise DataError(
            f"{name}: the trace has probabilities, and {given} was given where "
            f"({tokens}, {layer.num_experts}) is needed"
        )


def _check_length(name: str, found: int, expected: int, of: str) -> None:
    if found != expected:
        raise DataError(f"{name} has {found} values, and {expected} are needed, as many as {of}")


def _check_range(name: str, values: np.ndarray, first: int, last: int) -> None:
    outside = (values < first) | (values > last)
    if outside.any():
        value = values[outside.argmax()]
        raise DataError(f"{name} {value} must lie in {first}..{last}")
