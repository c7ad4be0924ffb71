"""Measure commands as whole processes, beside the start of Python and the import of torch.

    python benchmarks/startup.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out FILE.json

Every command is measured as a process from start to exit. Commands run in turn, each once
unmeasured, so that the page cache is warm, and the table has medians. `inspect RUN` reads a short
training of recipes/stdlib-bytes.yaml. `inspect HF` reads a folder with OLMoE's 16 layers of 64
experts (3,219 tensors) at a small width. `generate packed` uses the GGUF file packed in 8 bits.
`first start` generates from the GGUF file with an empty cache, and packs it; `second start` uses
the cached weights. At the end, `generate packed` and `second start` decode 128 tokens in turn.

The bars are the allowed times: 0.5 s to inspect a name and 1 s to inspect a model; the time of
importing torch and 0.7 s to generate from a packed folder; 0.5 s more to generate from a GGUF file.
The result has the load of the machine, and the share of its processors that other programs used.
The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sides.process import busy_seconds

from mixtura.checkpoints.hf.folder_writer import save_model
from mixtura.models import DecoderConfig
from mixtura.shapes.families import family_named

NARROW_OLMOE = {
    "model_type": "olmoe",
    "num_hidden_layers": 16,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "intermediate_size": 32,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
}
RECIPE = Path(__file__).parents[1] / "recipes" / "stdlib-bytes.yaml"
SHORT = ("train.steps=6", "train.warmup=2", "train.eval_tokens=4096")
PYTHON, TORCH = "python", "import torch"
INSPECT = {"inspect NAME": 0.5, "inspect RUN": 1.0, "inspect HF": 1.0, "inspect GGUF": 1.0}
PACKED, SECOND, FIRST = "generate packed", "generate GGUF, second start", "first start"
AFTER_TORCH, AFTER_PACKED = 0.7, 0.5


@dataclass(frozen=True, slots=True)
class Took:
    """The measurement of one process."""

    seconds: float
    elsewhere: float
    """the share of the machine's processors that other processes used at the same time"""


def mixtura(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mixtura", *map(str, arguments)]


def made(folder: Path, gguf: Path) -> dict[str, list[str]]:
    """Write the models into `folder`; returns the commands by name."""
    run, checkpoint, packed = folder / "run", folder / "olmoe", folder / "packed"
    overrides = [word for key in SHORT for word in ("--set", key)]
    took(mixtura("train", RECIPE, "--out", run, *overrides))
    family = family_named("olmoe")
    decoder = DecoderConfig.parse(family.read(NARROW_OLMOE)).build().to(torch.bfloat16)
    save_model(decoder, family, checkpoint)
    took(mixtura("pack", gguf, packed, "--bits", 8))
    generate = ("--prompt", "Once", "--max-tokens", 1, "--temperature", 0)
    return {
        PYTHON: [sys.executable, "-c", "pass"],
        TORCH: [sys.executable, "-c", "import torch"],
        "inspect NAME": mixtura("inspect", "mixtral-8x7b"),
        "inspect RUN": mixtura("inspect", run),
        "inspect HF": mixtura("inspect", checkpoint),
        "inspect GGUF": mixtura("inspect", gguf),
        PACKED: mixtura("generate", packed, *generate),
        SECOND: mixtura("generate", gguf, *generate),
    }


def took(command: Sequence[str]) -> Took:
    """Run a command. Prints its stderr and raises CalledProcessError if it fails."""
    began, busy_before, own_before = time.perf_counter(), busy_seconds(), _own()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    others = (busy_seconds() - busy_before) - (_own() - own_before)
    return Took(seconds, max(0.0, others / seconds / (os.cpu_count() or 1)))


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def decode_rates(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Tokens per second after the first token, for each command; the commands take turns."""
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
            rates[name].append(json.loads(done.stdout.splitlines()[-1])["tokens_per_second"])
    return {name: found[1:] for name, found in rates.items()}


def bars(seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds allowed to each command, given the median seconds of the same rounds."""
    return {
        **INSPECT,
        PACKED: seconds[TORCH] + AFTER_TORCH,
        SECOND: seconds[PACKED] + AFTER_PACKED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="a quantised GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["MIXTURA_CACHE"] = str(Path(temporary, "cache"))
        commands = made(Path(temporary), options.gguf.resolve())
        first = took(commands[SECOND])
        rounds = [
            {name: took(command) for name, command in commands.items()}
            for _ in range(options.rounds + 1)
        ][1:]
        longer = {
            name: ["128" if word == "1" else word for word in commands[name]]
            for name in (PACKED, SECOND)
        }
        rates = decode_rates(longer, options.rounds)
    seconds = {name: statistics.median(one[name].seconds for one in rounds) for name in commands}
    elsewhere = {
        name: statistics.median(one[name].elsewhere for one in rounds) for name in commands
    }
    bar = bars(seconds)
    for name, found in seconds.items():
        stated = f"bar {bar[name]:5.2f} s" if name in bar else ""
        print(f"{name:<30}{found:7.2f} s  {stated:<14} others took {elsewhere[name]:.0%}")
    print(f"{FIRST:<30}{first.seconds:7.2f} s")
    packed, gguf = (statistics.median(rates[name]) for name in (PACKED, SECOND))
    print(f"decode: GGUF {gguf:.1f} of packed {packed:.1f} tokens/s, {gguf / packed:.3f}")
    result = {
        "benchmark": "startup",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "rounds": options.rounds,
        "load": os.getloadavg(),
        "seconds": {**seconds, FIRST: first.seconds},
        "all": {name: [one[name].seconds for one in rounds] for name in commands},
        "elsewhere": elsewhere,
        "bars": bar,
        "decode_tokens_per_second": rates,
        "decode_ratio_of_packed": gguf / packed,
        "within": {name: seconds[name] <= most for name, most in bar.items()},
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
