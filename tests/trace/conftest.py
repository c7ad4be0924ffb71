"""Small traces, by hand and at random. T tokens, E experts."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mixtura.trace import LayerRows, TraceBatch, TracedLayer, TraceMeta, write_trace

META = TraceMeta(
    model="small",
    vocabulary=100,
    layers=(
        TracedLayer(layer=1, num_experts=4, top_k=2),
        TracedLayer(layer=3, num_experts=8, top_k=1),
    ),
)


def rows(
    experts: list[list[int]],
    weights: list[list[float]] | None = None,
    computed: list[list[int]] | None = None,
    probs_TE: np.ndarray | None = None,
) -> LayerRows:
    """From one list a token."""
    counts = [len(one) for one in experts]
    given = weights if weights is not None else [[0.5] * n for n in counts]
    done = experts if computed is None else computed
    return LayerRows(
        np.cumsum([0, *counts]),
        np.array(list(chain.from_iterable(experts)), np.int32),
        np.array(list(chain.from_iterable(given)), np.float32),
        np.array(list(chain.from_iterable(done)), np.int32),
        probs_TE,
    )


def three_tokens() -> TraceBatch:
    """Two tokens of a first sequence and one of a second; the last one's second choice is lost."""
    return TraceBatch(
        np.array([7, 8, 9], np.int32),
        np.array([0, 1, 0], np.int32),
        np.array([0, 0, 1], np.int32),
        np.array([-1, -1, -1], np.int32),
        {
            1: rows([[3, 0], [2], [1, 2]], [[0.75, 0.25], [1], [0.5, 0]], [[3, 0], [2], [1, -1]]),
            3: rows([[7], [], [0]]),
        },
    )


def random_batch(tokens: int, meta: TraceMeta = META, seed: int = 0) -> TraceBatch:
    """Of sequences of five tokens; each token has top_k experts."""
    rng = np.random.default_rng(seed)
    layers: dict[int, LayerRows] = {}
    for layer in meta.layers:
        scores_TE = rng.random((tokens, layer.num_experts))
        chosen = scores_TE.argsort(1)[:, : layer.top_k].tolist()
        weights = rng.random((tokens, layer.top_k)).tolist()
        probs_TE = None if meta.probabilities is None else scores_TE.astype(meta.probabilities)
        layers[layer.layer] = rows(chosen, weights, probs_TE=probs_TE)
    place_T = np.arange(tokens, dtype=np.int32)
    return TraceBatch(
        rng.integers(0, meta.vocabulary, tokens, np.int32),
        place_T % 5,
        place_T // 5,
        np.full(tokens, -1, np.int32),
        layers,
    )


def written(path: Path, batch: TraceBatch, meta: TraceMeta = META) -> Path:
    with write_trace(path, meta) as writer:
        writer.append(batch)
    return path


def assert_same(found: TraceBatch, expected: TraceBatch) -> None:
    for name in ("id_T", "position_T", "sequence_T", "domain_T"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.layers.keys() == expected.layers.keys()
    for number, there in expected.layers.items():
        here = found.layers[number]
        for name in ("start_T1", "chosen_N", "weight_N", "computed_N"):
            # As bits, so that a NaN is itself.
            assert getattr(here, name).tobytes() == getattr(there, name).tobytes(), (number, name)
        assert (here.probs_TE is None) == (there.probs_TE is None)
        if here.probs_TE is not None and there.probs_TE is not None:
            assert here.probs_TE.dtype == there.probs_TE.dtype
            assert np.array_equal(here.probs_TE, there.probs_TE)


@pytest.fixture
def meta() -> TraceMeta:
    """Layer 1 of four experts, two a token; layer 3 of eight, one a token; 100 tokens."""
    return META


@pytest.fixture
def make_rows() -> Callable[..., LayerRows]:
    return rows


@pytest.fixture
def make_batch() -> Callable[..., TraceBatch]:
    return random_batch


@pytest.fixture
def hand_written() -> TraceBatch:
    return three_tokens()


@pytest.fixture
def write() -> Callable[..., Path]:
    return written


@pytest.fixture
def same() -> Callable[[TraceBatch, TraceBatch], None]:
    return assert_same
