"""Compare Mixtura's experts in a transformers model with transformers' own, at OLMoE's shape.

    python benchmarks/transformers_backend.py --layers 16 \\
        --out benchmarks/results/transformers_backend.json

Measures whole forward passes in bf16 with random weights: width 2048, 64 experts of width 1024,
top-8, vocabulary 50304. Each round runs every implementation once, and figures are medians over
rounds. The limit of a prefill is one dense bf16 product with as many operations. The limit of a
decode step is reading as many bytes as the bf16 weights that the step needs; packed experts read
fewer. A model with packed experts shares all other weights with the plain model. The last line is
one JSON object. T tokens, D width, K experts per token.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache, OlmoeConfig, OlmoeForCausalLM
from transformers.initialization import no_init_weights

from mixtura.hf_models import pack_experts, register
from mixtura.hf_models.packed_experts import NAMES

PEERS = ["eager", "grouped_mm", "batched_mm"]
OURS = ["mixtura", "mixtura-8bit", "mixtura-4bit"]
WIDTH, EXPERT_WIDTH, EXPERTS, TOP_K, VOCABULARY, CONTEXT = 2048, 1024, 64, 8, 50304, 128


def build(layers: int) -> OlmoeForCausalLM:
    config = OlmoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=EXPERT_WIDTH,
        num_hidden_layers=layers,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
    )
    with no_init_weights():
        model = OlmoeForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    # Seven billion random numbers would take minutes, so one block of random numbers is repeated.
    block = torch.randn(WIDTH * EXPERT_WIDTH).mul_(0.02).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)
                continue
            for part in parameter.view(-1).split(block.numel()):
                part.copy_(block[: part.numel()].roll(torch.randint(block.numel(), ()).item()))
    return model


def beside(model: OlmoeForCausalLM, names: list[str]) -> dict[str, OlmoeForCausalLM]:
    """The model of each implementation; each packed implementation has a copy of its own."""
    models = dict.fromkeys(names, model)
    for name, bits in NAMES.items():
        if name in names:
            shared = {id(tensor): tensor for tensor in model.parameters()}
            models[name] = copy.deepcopy(model, shared)
            pack_experts(models[name], bits)
    return models


def active_parameters(layers: int, tokens: int = 1) -> int:
    """Parameters that a step of `tokens` tokens is expected to read, without the input embedding.

    Each token chooses its experts independently.
    """
    chosen = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** tokens)
    experts = round(chosen * 3 * WIDTH * EXPERT_WIDTH) + EXPERTS * WIDTH
    return layers * (4 * WIDTH**2 + experts) + VOCABULARY * WIDTH


def reader(model: OlmoeForCausalLM, parameters: int) -> Callable[[], object]:
    """A function that reads `parameters` bf16 numbers, each time from other weights."""
    banks = [layer.mlp.experts.gate_up_proj.data for layer in model.model.layers]
    whole, count, turn = banks[0].numel(), parameters, iter(range(10**9))

    def read() -> None:
        left, first = count, next(turn)
        while left > 0:
            bank = banks[first % len(banks)].view(-1)
            taken = min(left, whole // 2)
            start = whole // 2 * (first // len(banks) % 2)
            bank[start : start + taken].view(torch.int32).amax()
            left, first = left - taken, first + 1

    return read


def multiplier(parameters: int, tokens: int) -> Callable[[], object]:
    """A function that computes one product with as many operations as `tokens` tokens need."""
    weight = torch.randn(WIDTH, WIDTH).bfloat16()
    rows = torch.randn(parameters // WIDTH**2 * tokens, WIDTH, dtype=torch.bfloat16)
    return lambda: rows @ weight


Prepare = Callable[[OlmoeForCausalLM], Callable[[], object]]


def interleave(
    models: dict[str, OlmoeForCausalLM],
    names: list[str],
    rounds: int,
    prepare: Prepare,
    limit: Callable[[], object],
) -> dict[str, float]:
    """Median seconds of each implementation and of `limit`; `prepare` returns a round's step."""
    seconds: dict[str, list[float]] = {name: [] for name in [*names, "limit"]}
    for _ in range(rounds + 1):
        for name in names:
            models[name].set_experts_implementation(name)
            step = prepare(models[name])
            seconds[name].append(timed(step))
        seconds["limit"].append(timed(limit))
    # The first round is not counted, since kernels are created in it.
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def prefill(tokens: int) -> Prepare:
    def prepare(model: OlmoeForCausalLM) -> Callable[[], object]:
        ids = torch.randint(VOCABULARY, (1, tokens))
        return lambda: model(ids, use_cache=True, logits_to_keep=1)

    return prepare


def decode(model: OlmoeForCausalLM, sequences: int) -> Prepare:
    """One new token for each sequence, after CONTEXT tokens."""
    cache = DynamicCache(config=model.config)
    # Positional, because transformers 5.24 renamed the argument of the cache.
    model(torch.randint(VOCABULARY, (sequences, CONTEXT)), None, None, cache)

    def prepare(model: OlmoeForCausalLM) -> Callable[[], object]:
        cache.crop(CONTEXT - cache.get_seq_length())
        ids = torch.randint(VOCABULARY, (sequences, 1))
        return lambda: model(ids, None, None, cache)

    return prepare


def experts_alone() -> Prepare:
    """The experts of every layer on one token, without the rest of the model."""

    def prepare(model: OlmoeForCausalLM) -> Callable[[], object]:
        x_TD = torch.randn(1, WIDTH, dtype=torch.bfloat16)
        chosen = [torch.randperm(EXPERTS)[None, :TOP_K] for _ in model.model.layers]
        weights = torch.full((1, TOP_K), 1 / TOP_K, dtype=torch.bfloat16)

        def step() -> None:
            for layer, expert_TK in zip(model.model.layers, chosen, strict=True):
                layer.mlp.experts(x_TD, expert_TK, weights)

        return step

    return prepare


def report(what: str, tokens: int, seconds: dict[str, float]) -> dict[str, object]:
    rates = {name: tokens / value for name, value in seconds.items()}
    best = max((name for name in PEERS if name in rates), key=rates.__getitem__)
    ratios = {name: rates[name] / rates[best] for name in OURS if name in rates}
    listed = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"\n{what}: of the best of transformers ({best}), {listed}")
    for name, rate in rates.items():
        print(f"  {name:<12} {rate:8.2f} tokens/s  {rate / rates['limit']:.2f} of the limit")
    return {"what": what, "tokens_per_second": rates, "best_peer": best, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--without", default=[], type=lambda text: text.split(","), metavar="A,B",
        help=f"some of {', '.join([*PEERS, *OURS])}: 16 layers and all of them need 26 GB",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    register()
    names = [name for name in [*PEERS, *OURS] if name not in options.without]
    # Rows of 512 tokens would make batched_mm copy 51 GB of weights a layer.
    of_prefill = [name for name in names if name != "batched_mm"]
    model = build(options.layers)
    models = beside(model, names)
    rows = []
    with torch.inference_mode():
        measured = interleave(
            models,
            names,
            options.rounds * 3,
            decode(model, 1),
            reader(model, active_parameters(options.layers)),
        )
        rows.append(report("decode, one sequence", 1, measured))
        measured = interleave(
            models,
            names,
            options.rounds * 3,
            experts_alone(),
            reader(model, options.layers * TOP_K * 3 * WIDTH * EXPERT_WIDTH),
        )
        rows.append(report("its experts alone", 1, measured))
        measured = interleave(
            models,
            names,
            options.rounds,
            decode(model, 16),
            reader(model, active_parameters(options.layers, 16)),
        )
        rows.append(report("decode, 16 sequences", 16, measured))
        measured = interleave(
            models,
            of_prefill,
            options.rounds,
            prefill(512),
            multiplier(active_parameters(options.layers), 512),
        )
        rows.append(report("prefill, 512 tokens", 512, measured))
    result = {
        "benchmark": "transformers_backend",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "layers": options.layers,
        "rounds": options.rounds,
        "threads": options.threads,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
