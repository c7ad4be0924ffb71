"""Time from a folder on disk to the first token: Mixtura, transformers, and one read of the files.

    python benchmarks/loading.py --out benchmarks/results/loading.json

Writes a folder of about --gb gigabytes in bf16: OLMoE's shape with random weights and as many
layers as fit. Then each way loads the folder in turn, and continues a prompt of five tokens by one
token. Imports are not measured, and each way runs once unmeasured, so the page cache is warm. `read
once` reads every byte into one buffer of 16 MB. `copied once` reads every byte into new memory,
which is the limit of loaders that copy. The last line is one JSON object.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.checkpoints.loaded_model import load_model
from mixtura.models import Decoder, DecoderConfig, State
from mixtura.models.blueprint import without_weights
from mixtura.shapes.families import family_named
from mixtura.tensor_files.digests import FILE as DIGESTS

OLMOE = {
    "model_type": "olmoe",
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "vocab_size": 50304,
    "intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
}
PROMPT = [[1, 2, 3, 4, 5]]
BUFFER = 1 << 24


def write_model(folder: Path, gigabytes: float) -> int:
    """Write a model with random weights; returns its bytes of weights."""
    family = family_named("olmoe")
    outer, layer = 2 * 2048 * 50304 * 2, (64 * 3 * 1024 * 2048 + 4 * 2048**2) * 2
    layers = max(1, round((gigabytes * 1e9 - outer) / layer))
    with without_weights():
        decoder = DecoderConfig.parse(family.read({**OLMOE, "num_hidden_layers": layers})).build()
    decoder = decoder.to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.02)
    saved = save_model(decoder, family, folder)
    # Published checkpoints have no digests.
    (folder / DIGESTS).unlink()
    return saved.bytes


def read_once(folder: Path) -> None:
    buffer = bytearray(BUFFER)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def copied_once(folder: Path) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            kept = memoryview(bytearray(file.stat().st_size))
            while read := opened.readinto(kept):
                kept = kept[read:]


def ours(folder: Path) -> None:
    decoder = load_model(folder).decoder
    first_token(decoder)


def first_token(decoder: Decoder) -> None:
    state = State.empty(decoder.config, 1, 64, torch.bfloat16)
    with torch.inference_mode():
        decoder(torch.tensor(PROMPT), None, state).logits_BSV[0, -1].argmax().item()


def theirs(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        model(torch.tensor(PROMPT)).logits[0, -1].argmax().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="a model that is there already")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary, "model")
        if options.folder is None:
            write_model(folder, options.gb)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        ways: dict[str, Callable[[], None]] = {
            name: partial(way, folder)
            for name, way in {
                "read once": read_once,
                "copied once": copied_once,
                "mixtura": ours,
                "transformers": theirs,
            }.items()
        }
        seconds = measured(ways, options.rounds)
    ratio = seconds["mixtura"] / seconds["read once"]
    for name, took in seconds.items():
        print(f"{name:<14}{took:7.2f} s  {took / seconds['read once']:6.2f} of reading once")
    result = {
        "benchmark": "loading",
        "torch": torch.__version__,
        "threads": options.threads,
        "bytes": size,
        "seconds": seconds,
        "ratio_to_reading": ratio,
        "ratio_to_transformers": seconds["mixtura"] / seconds["transformers"],
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def measured(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds over rounds in which all ways take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            gc.collect()
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
