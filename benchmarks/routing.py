"""Measure the time of routing beside that of the experts, and the time of thousands of experts.

    python benchmarks/routing.py --out benchmarks/results/routing.json

There are three parts. Each gives a ratio of median times of forward and backward, over rounds in
which both steps take turns:

* `share`: the time of routing, permuting and combining, divided by that of the whole layer, with 64
  experts and 4,096 tokens of width 512. The first time is the layer's time minus that of the
  experts on the same sorted rows.
* `thousands`: the time of 4,096 experts with a hierarchical gate, divided by that of 64 experts
  with a flat gate, with 32,768 tokens and top-4. Experts have the same width.
* `few_rows`: the time of the same 4,096 experts with fewer rows, divided by the time of reading the
  weights of the chosen experts twice and writing their gradients once.

Freed memory is kept, as in training. The last line is one JSON object.
M rows of sorted experts, T tokens, N routed rows, D width, E experts.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mixtura.kernels import permute
from mixtura.kernels.experts_ffn import experts_ffn
from mixtura.moe import MoE, MoEConfig
from mixtura.moe.backends import best_products, padding_of
from mixtura.train.allocator import keep_freed_memory

WIDTH = 512
HIERARCHY = {
    "kind": "hierarchical",
    "groups": 64,
    "outer_top_k": 2,
    "outer": {"kind": "softmax_topk"},
    "inner": {"kind": "softmax_topk"},
}

Step = Callable[[], object]


def build(num_experts: int, top_k: int, expert_width: int, router: dict[str, object]) -> MoE:
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": expert_width}
    return MoE(WIDTH, MoEConfig.parse({**tree, "router": router}))


def whole_layer(layer: MoE, x_TD: Tensor, grad_TD: Tensor) -> None:
    """A step with new gradient tensors, as in training."""
    layer.zero_grad(set_to_none=True)
    output = layer(x_TD)
    torch.autograd.backward([output.hidden, output.loss], [grad_TD, None])


def experts_alone(layer: MoE, x_MD: Tensor, segment_E: Tensor, grad_MD: Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    x_MD.grad = None
    experts = layer.experts
    products = best_products(x_MD.dtype, x_MD.device, *experts.w_out.shape[1:])
    y_MD = experts_ffn(x_MD, segment_E, experts.w_in, experts.w_out, experts.activation, products)
    y_MD.backward(grad_MD)


def experts_step(layer: MoE, x_TD: Tensor) -> Step:
    """The experts' part of `whole_layer`, on rows that are sorted beforehand."""
    with torch.no_grad():
        routing = layer(x_TD).routing
        order = permute.order_by_expert(
            routing.expert_N,
            routing.token_N,
            routing.num_experts,
            routing.top_k,
            padding_of(
                best_products(x_TD.dtype, x_TD.device, *layer.experts.w_out.shape[1:]), x_TD.dtype
            ),
        )
        x_MD = permute.permute(x_TD.detach(), order)
    return partial(
        experts_alone, layer, x_MD.requires_grad_(), order.segment_E, torch.randn_like(x_MD)
    )


def move(read: list[Tensor], written: list[Tensor]) -> None:
    """Read weights twice, as forward and backward do, and write their gradients once."""
    for weight in read:
        weight.sum()
        weight.sum()
    for gradient in written:
        gradient.fill_(1.0)


def medians(steps: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            began = clock()
            step()
            seconds[name].append(clock() - began)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def share(rounds: int, clock: Callable[[], float]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    x_TD = torch.randn(4096, WIDTH, requires_grad=True)
    grad_TD = torch.randn(4096, WIDTH)
    for top_k, expert_width in [(2, 2048), (2, 512), (8, 256), (2, 64)]:
        layer = build(64, top_k, expert_width, {"kind": "softmax_topk"})
        steps = {
            "layer": partial(whole_layer, layer, x_TD, grad_TD),
            "experts": experts_step(layer, x_TD),
        }
        found = medians(steps, rounds, clock)
        part = 1 - found["experts"] / found["layer"]
        print(f"top-{top_k} of 64 experts of {expert_width}: {100 * part:.1f}% of the layer")
        rows.append({"top_k": top_k, "expert_width": expert_width, "share": part, "seconds": found})
    return rows


def thousands(rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    x_TD = torch.randn(32_768, WIDTH, requires_grad=True)
    grad_TD = torch.randn(32_768, WIDTH)
    few = build(64, 4, 64, {"kind": "softmax_topk"})
    many = build(4096, 4, 64, HIERARCHY)
    steps = {
        "64 experts": partial(whole_layer, few, x_TD, grad_TD),
        "4096 experts": partial(whole_layer, many, x_TD, grad_TD),
    }
    found = medians(steps, rounds, clock)
    ratio = found["4096 experts"] / found["64 experts"]
    print(f"32,768 tokens, top-4: 4,096 experts take {ratio:.2f} times 64")
    return {"ratio": ratio, "seconds": found}


def few_rows(rounds: int, clock: Callable[[], float]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    layer = build(4096, 4, 64, HIERARCHY)
    for tokens in (1024, 4096):
        x_TD = torch.randn(tokens, WIDTH, requires_grad=True)
        with torch.no_grad():
            touched_E = layer(x_TD).routing.expert_N.unique()
        # The limit uses as many experts as are chosen, consecutive in memory, which is fastest.
        touched = [w.detach()[: len(touched_E)] for w in (layer.experts.w_in, layer.experts.w_out)]
        written = [torch.empty_like(weight) for weight in touched]
        steps: dict[str, Step] = {
            "layer": partial(whole_layer, layer, x_TD, torch.randn(tokens, WIDTH)),
            "moving": partial(move, touched, written),
        }
        found = medians(steps, rounds, clock)
        ratio = found["layer"] / found["moving"]
        print(
            f"{tokens} tokens touch {len(touched_E)} of 4,096 experts: {ratio:.2f} of moving them"
        )
        rows.append({"tokens": tokens, "touched": len(touched_E), "ratio": ratio, "seconds": found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--only", choices=["share", "thousands", "few_rows"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    parts = {"share": share, "thousands": thousands, "few_rows": few_rows}
    result: dict[str, object] = {
        "benchmark": "routing",
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": options.clock,
    }
    for name, part in parts.items():
        if options.only in (None, name):
            result[name] = part(options.rounds, clock)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
