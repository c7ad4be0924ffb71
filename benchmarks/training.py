"""Measure training: MoE decoders, their dense twins, transformers' Mixtral and the GEMM peak.

    python benchmarks/training.py --experts 8:2 64:8 --out benchmarks/results/training.json

Every model has 6 layers of width 384 and a vocabulary of 4096, and trains on 8 sequences of 256
tokens with AdamW and bf16 autocast. In each round every model takes one step, in one process, so
that other work on the machine slows all models alike. Figures are medians, and ratios are ratios of
medians. The last line is one JSON object.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.models import Decoder, DecoderConfig
from mixtura.moe import end_step
from mixtura.shapes import dense_twin

LAYERS, WIDTH, VOCABULARY, BATCH, LENGTH, HEADS = 6, 384, 4096, 8, 256, 6
ACTIVE_FFN = 1024
# oneDNN creates a kernel for each new shape, and the first steps of a new router have many shapes.
WARM_UP = 10
Step = Callable[[], None]


def decoder_config(num_experts: int, top_k: int) -> DecoderConfig:
    """The active FFN width, top_k times the expert width, is 1024 for every number of experts."""
    heads = {"heads": HEADS, "kv_heads": HEADS, "head_dim": WIDTH // HEADS}
    moe = {"num_experts": num_experts, "top_k": top_k, "expert_width": ACTIVE_FFN // top_k}
    shape = {"layers": LAYERS, "width": WIDTH, "vocabulary": VOCABULARY, "context": LENGTH}
    return DecoderConfig.parse({**shape, "attention": heads, "moe": moe})


def training_step(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """One optimizer step on fixed random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # As in the trainer: gradients are not multiplied when the factor would be 1.
        if norm > 1.0:
            nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm)
        optimizer.step()
        optimizer.zero_grad()
        end_step(model)

    return step


def ours(config: DecoderConfig) -> Step:
    decoder = Decoder(config).train()

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        output = decoder(inputs)
        logits = output.logits_BSV.flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten()) + output.balance_loss

    return training_step(decoder, loss_of)


def transformers_mixtral(config: DecoderConfig, implementation: str) -> Step:
    """transformers' own Mixtral in the same shape, with its balance loss."""
    from transformers import MixtralConfig, MixtralForCausalLM

    assert config.moe is not None
    theirs = MixtralConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.moe.expert_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.attention.heads,
        num_key_value_heads=config.attention.kv_heads,
        max_position_embeddings=config.context,
        num_local_experts=config.moe.num_experts,
        num_experts_per_tok=config.moe.top_k,
        output_router_logits=True,
        experts_implementation=implementation,
        use_cache=False,
    )
    model = MixtralForCausalLM(theirs).train()

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        output = model(input_ids=inputs)
        return F.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten())

    return training_step(model, loss_of)


def gemm_peak() -> Step:
    """A bf16 product of 2048 x 2048 x 2048, whose speed is taken as the machine's peak."""
    left, right = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    return lambda: (left @ right, None)[1]


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step. Every round runs each step once; `WARM_UP` rounds are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + WARM_UP):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if round_ >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(num_experts: int, top_k: int, rounds: int, with_peers: bool) -> dict[str, object]:
    config = decoder_config(num_experts, top_k)
    twin = dense_twin(config)
    steps = {
        "dense twin": ours(DecoderConfig(**twin.model_dump())),
        "mixtura": ours(config),
        "bf16 GEMM": gemm_peak(),
    }
    if with_peers:
        for implementation in ("eager", "grouped_mm"):
            steps[f"transformers {implementation}"] = transformers_mixtral(config, implementation)
    medians = {name: statistics.median(s) for name, s in interleaved(steps, rounds).items()}
    peak = 2 * 2048**3 / medians.pop("bf16 GEMM")
    tokens = BATCH * LENGTH
    # Backward takes twice the FLOPs of forward. Attention is counted at the mean length of causal
    # attention, half the sequence.
    flops = 3 * config.flops_per_token(LENGTH // 2)
    rates = {name: tokens / median for name, median in medians.items()}
    print(f"\n{num_experts} experts, top-{top_k}, expert width {ACTIVE_FFN // top_k}")
    for name, rate in rates.items():
        print(f"  {name:<24} {rate:8.0f} tokens/s  {rate / rates['dense twin']:.2f} of the twin")
    limit = peak / flops
    print(f"  {'limit: GEMM peak':<24} {limit:8.0f} tokens/s  ({peak / 1e9:.0f} GFLOP/s)")
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio_to_dense_twin": round(rates["mixtura"] / rates["dense twin"], 3),
        "limit_tokens_per_second": round(limit, 1),
        "gemm_gflops": round(peak / 1e9, 1),
        "active_parameters": config.active_parameters(),
        "dense_active_parameters": twin.active_parameters(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", nargs="+", default=["8:2", "64:8"], metavar="E:K")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with_peers = not options.no_peers and importlib.util.find_spec("transformers") is not None
    if not with_peers:
        print("transformers is left out (not installed, or --no-peers)")
    pairs = [tuple(int(part) for part in pair.split(":")) for pair in options.experts]
    result = {
        "benchmark": "training",
        "torch": torch.__version__,
        "threads": options.threads,
        "processor": platform.processor() or platform.machine(),
        "rounds": options.rounds,
        "rows": [measure(e, k, options.rounds, with_peers) for e, k in pairs],
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
