"""Compare the backends for the products of experts, forward and backward.

    python benchmarks/experts.py --out benchmarks/results/experts.json

Every pass has new routing, so that the numbers of rows change as in training; the time includes
the cost of a backend that creates a kernel for each new number of rows. Figures are medians over
rounds in which all backends take turns. `dense` is one FFN with the same work, which is the limit.
The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mixtura.moe.backends import BACKENDS as REGISTERED
from mixtura.moe.experts import DenseFFN, Experts
from mixtura.moe.routing import Routing

# width, experts, expert width, top_k, tokens
SHAPES = [
    (64, 16, 128, 2, 4096),
    (64, 64, 128, 2, 4096),
    (384, 8, 512, 2, 2048),
    (384, 64, 128, 8, 2048),
]
BACKENDS = [name for name in REGISTERED.values if name.startswith("torch_")]


def routing(tokens: int, experts: int, top_k: int) -> Routing:
    """A random choice in which the busiest expert has about twice its even share."""
    preference_E = torch.randn(experts) * 0.3
    score_TE = preference_E + torch.empty(tokens, experts).exponential_().log().neg()
    chosen_TK = score_TE.topk(top_k).indices
    return Routing.of_choices(chosen_TK, torch.full(chosen_TK.shape, 1 / top_k), experts)


def measure(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> dict[str, object]:
    width, num_experts, expert_width, top_k, tokens = shape
    layers = {
        backend: Experts(width, num_experts, expert_width, "swiglu", backend).to(dtype)
        for backend in BACKENDS
    }
    dense = DenseFFN(width, top_k * expert_width, "swiglu").to(dtype)
    x_TD = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    grad_TD = torch.randn(tokens, width, dtype=dtype)
    seconds: dict[str, list[float]] = {name: [] for name in [*BACKENDS, "dense"]}

    def timed(name: str, forward: Callable[[], torch.Tensor]) -> None:
        began = time.perf_counter()
        forward().backward(grad_TD)
        seconds[name].append(time.perf_counter() - began)

    for _ in range(rounds + 3):
        for backend, experts in layers.items():
            # Each backend has its own routing, since backends share kernels that are created for
            # numbers of rows.
            routed = routing(tokens, num_experts, top_k)
            timed(backend, lambda e=experts, r=routed: e(x_TD, r))
        timed("dense", lambda: dense(x_TD))
    medians = {name: statistics.median(values[3:]) * 1e3 for name, values in seconds.items()}
    chosen = Experts(width, num_experts, expert_width, "swiglu").products_for(dtype, x_TD.device)
    label = f"width {width}, {num_experts} experts of {expert_width}, top-{top_k}, {tokens} tokens"
    print(f"\n{label}, {str(dtype).removeprefix('torch.')}: auto takes {chosen}")
    for name, milliseconds in medians.items():
        print(
            f"  {name:<14} {milliseconds:7.2f} ms  {medians['dense'] / milliseconds:.2f} of dense"
        )
    return {"shape": label, "dtype": str(dtype), "auto": chosen, "milliseconds": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = [
        measure(shape, dtype, options.rounds)
        for shape in SHAPES
        for dtype in (torch.float32, torch.bfloat16)
    ]
    result = {
        "benchmark": "experts",
        "torch": torch.__version__,
        "threads": options.threads,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
