"""Measure a routing trace: bytes and time a token, beside an Arrow file of the same arrays.

    python benchmarks/traces.py --out benchmarks/results/traces.json

The routing has OLMoE-1B-7B's shape (16 layers, 64 experts, top-8) and comes from random gates that
choose some experts more often than others. `us` is a trace. `peer` is an Arrow IPC file of the same
columns, compressed with zstd. `limit` is the size of 6 bits for each expert and 32 for each weight.
Times are medians over rounds in which all steps take turns. Reading one layer of 16 shows the gain
of storing columns separately. The last line is one JSON object. T tokens, E experts, K experts per
token, N routed rows.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from mixtura.trace import (
    ABSENT,
    LayerRows,
    TraceBatch,
    TracedLayer,
    TraceMeta,
    TraceReader,
    write_trace,
)
from mixtura.trace.columns import to_arrow

LAYERS, EXPERTS, TOP_K, VOCABULARY, LENGTH = 16, 64, 8, 50304, 1024
BATCH = 4096
# 6 bits for an expert and 32 for a weight; token, position and sequence are not counted.
PACKED_BYTES = LAYERS * TOP_K * (6 + 32) / 8


def layer_rows(rng: np.random.Generator, tokens: int) -> LayerRows:
    logits_TE = rng.standard_normal((tokens, EXPERTS)) + 0.5 * rng.standard_normal(EXPERTS)
    probs_TE = np.exp(logits_TE) / np.exp(logits_TE).sum(1, keepdims=True)
    chosen_TK = (-probs_TE).argsort(1)[:, :TOP_K]
    weight_TK = np.take_along_axis(probs_TE, chosen_TK, 1)
    chosen_N = chosen_TK.reshape(-1).astype(np.int32)
    return LayerRows(
        np.arange(tokens + 1) * TOP_K,
        chosen_N,
        weight_TK.reshape(-1).astype(np.float32),
        chosen_N,
    )


def tokens_of(count: int) -> TraceBatch:
    rng = np.random.default_rng(0)
    place_T = np.arange(count, dtype=np.int32)
    return TraceBatch(
        # Few tokens are frequent and many are rare, as in text.
        np.minimum(rng.zipf(1.3, count), VOCABULARY - 1).astype(np.int32),
        place_T % LENGTH,
        place_T // LENGTH,
        np.full(count, ABSENT, np.int32),
        {layer: layer_rows(rng, count) for layer in range(LAYERS)},
    )


def write_ours(path: Path, batches: list[TraceBatch], meta: TraceMeta) -> None:
    with write_trace(path, meta) as writer:
        for batch in batches:
            writer.append(batch)


def write_arrow(path: Path, batches: list[TraceBatch], meta: TraceMeta) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    parts = [to_arrow(batch, meta, []) for batch in batches]
    with (
        path.open("wb") as handle,
        pa.ipc.new_file(handle, parts[0].schema, options=options) as out,
    ):
        for part in parts:
            out.write_batch(part)


def read_ours(path: Path, layers: list[int] | None = None) -> None:
    with TraceReader(path) as reader:
        for _ in reader.batches(layers):
            pass


def read_arrow(path: Path) -> None:
    with path.open("rb") as handle:
        reader = pa.ipc.open_file(handle)
        for part in range(reader.num_record_batches):
            reader.get_batch(part)


def medians(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    layers = tuple(TracedLayer(layer=n, num_experts=EXPERTS, top_k=TOP_K) for n in range(LAYERS))
    meta = TraceMeta(model="olmoe's shape", vocabulary=VOCABULARY, layers=layers)
    whole = tokens_of(options.tokens)
    places = [np.arange(at, min(at + BATCH, len(whole))) for at in range(0, len(whole), BATCH)]
    batches = [whole.take(place) for place in places]
    with tempfile.TemporaryDirectory() as folder:
        ours, arrow = Path(folder, "trace.parquet"), Path(folder, "trace.arrow")
        found = medians(
            {
                "write, us": lambda: write_ours(ours, batches, meta),
                "write, peer": lambda: write_arrow(arrow, batches, meta),
                "read, us": lambda: read_ours(ours),
                "read, peer": lambda: read_arrow(arrow),
                "read one layer, us": lambda: read_ours(ours, [0]),
            },
            options.rounds,
        )
        sizes = {"us": ours.stat().st_size, "peer": arrow.stat().st_size}
    per_token = {name: size / len(whole) for name, size in sizes.items()} | {"limit": PACKED_BYTES}
    rates = {name: len(whole) / seconds for name, seconds in found.items()}
    for name, size in per_token.items():
        print(f"{name}: {size:.0f} bytes a token")
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} tokens/s")
    result = {
        "benchmark": "traces",
        "tokens": len(whole),
        "pyarrow": pa.__version__,
        "machine": platform.processor() or platform.machine(),
        "bytes_per_token": per_token,
        "bytes_over_peer": per_token["us"] / per_token["peer"],
        "bytes_over_limit": per_token["us"] / per_token["limit"],
        "tokens_per_second": rates,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
