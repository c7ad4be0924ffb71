"""Time of packing weights: the kernels, the PyTorch references, and one copy of memory.

    python benchmarks/packing.py --out benchmarks/results/packing.json

Quantises random bf16 weights of OLMoE's width and arranges them in tiles, in each way in turn. The
limit is a copy of the weights and of their numbers, since packing has to read and write them. The
last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mixtura.kernels.native import instruction_sets, set_threads
from mixtura.kernels.packed.groups import Bits, quantise, quantise_naive
from mixtura.kernels.packed.tiles import tile, tile_naive

WIDTH = 2048


def ways(w_NK: Tensor, bits: Bits) -> dict[str, Callable[[], object]]:
    groups = quantise(w_NK, bits)
    copy, byte_NK = torch.empty_like(w_NK), groups.q_NK.clone()
    # The PyTorch reference takes seconds where the kernel takes milliseconds.
    few = len(w_NK) // 16
    return {
        "copy the weights": lambda: copy.copy_(w_NK),
        "quantise": lambda: quantise(w_NK, bits),
        "quantise, twin": lambda: quantise_naive(w_NK[:few], bits),
        "copy the numbers": lambda: byte_NK.copy_(groups.q_NK),
        "tile": lambda: tile(groups),
        "tile, twin": lambda: tile_naive(groups),
    }


def measured(found: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds over rounds in which all ways take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, way in found.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(took[1:]) for name, took in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Weights into packed tiles.")
    parser.add_argument("--millions", type=float, default=16.0, help="of weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_threads(options.threads)
    rows = max(16, round(options.millions * 1e6 / WIDTH))
    w_NK = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = {
        "benchmark": "packing",
        "torch": torch.__version__,
        "instruction_sets": list(instruction_sets()),
        "threads": options.threads,
        "weights": w_NK.numel(),
        "bits": {},
    }
    choices: tuple[Bits, ...] = (4, 8)
    for bits in choices:
        seconds = measured(ways(w_NK, bits), options.rounds)
        seconds["quantise, twin"] *= rows / (rows // 16)
        nanoseconds = {name: 1e9 * took / w_NK.numel() for name, took in seconds.items()}
        for name, took in nanoseconds.items():
            print(f"{bits} bits  {name:<18}{took:8.3f} ns a weight")
        result["bits"][str(bits)] = {
            "nanoseconds_a_weight": nanoseconds,
            "quantise_ratio_to_copy": seconds["quantise"] / seconds["copy the weights"],
            "quantise_ratio_to_twin": seconds["quantise"] / seconds["quantise, twin"],
            "tile_ratio_to_copy": seconds["tile"] / seconds["copy the numbers"],
            "tile_ratio_to_twin": seconds["tile"] / seconds["tile, twin"],
        }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
