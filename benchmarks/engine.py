"""Measure Mixtura's engine, its peers and the machine's limits in turn, on the same random weights.

    python benchmarks/engine.py --out benchmarks/results/engine.json
    python benchmarks/engine.py --short --shape olmoe --layers 4 --only llama.cpp,mixtura

Each side is a process that waits on a pipe, so only one side computes at a time. If not all sides
fit into memory, they are measured in several phases, and Mixtura is part of each phase. Prefill
reads a prompt of 512 tokens. Decode takes 32 steps (8 with --short) after a prompt of 64 tokens, or
after 16 prompts of 16. The limit is measured before and after each measurement: raw reads of memory
for decode, multiply-adds of 8-bit numbers for prefill. Figures are medians over rounds, without a
first round; each round decodes one sequence three times. If other programs keep more than a tenth
of a core busy, the measurement is repeated, at most --patience times.

The result of each shape is written to --out as soon as it is complete; earlier results of other
shapes on the same processor are kept. The last line is one JSON object. docs/performance.md
describes the method.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from sides.bench import OURS, PEERS, Bench
from sides.gguf_file import gguf_file
from sides.process import available_bytes
from sides.shapes import DEPTHS, SHAPES
from sides.side import Setting
from sides.tables import insert


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text()
    facts = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line
    )
    wanted = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimddp i8mm"
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "instruction_sets": [flag for flag in wanted.split() if flag in flags],
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "available_bytes": available_bytes(),
    }


def options_of_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    listed = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--shape", default=list(SHAPES), **listed)
    parser.add_argument("--layers", type=int, help="instead of each shape's own depth")
    parser.add_argument("--only", default=[*PEERS, OURS], **listed)
    parser.add_argument("--short", action="store_true", help="2 rounds, 8 steps, one load")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--patience", type=int, default=2)
    parser.add_argument(
        "--urgent", action="store_true", help="real-time priority for what is measured (root)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder that keeps the files; else a new one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="a page whose tables are to be replaced")
    options = parser.parse_args()
    for given, known in ((options.shape, SHAPES), (options.only, [*PEERS, OURS])):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    options.rounds = options.rounds or (2 if options.short else 7)
    options.steps = 8 if options.short else 32
    options.loads = 1 if options.short else 3
    return options


def _of_others(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Earlier results in --out for other shapes, if they are from the same processor."""
    if not options.out or not options.out.exists():
        return []
    known = json.loads(options.out.read_text())
    if known["machine"]["cpu"] != machine()["cpu"] or known["threads"] != options.threads:
        return []
    return [one for one in known["shapes"] if one["shape"]["name"] not in options.shape]


def _in_order(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = list(SHAPES)
    return sorted(results, key=lambda one: names.index(one["shape"]["name"]))


def _write(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.out:
        new = options.out.with_suffix(".new")
        new.write_text(json.dumps(result, indent=2) + "\n")
        new.replace(options.out)
    if options.page:
        insert(result, options.page)


def main() -> None:
    options = options_of_command()
    result: dict[str, Any] = {
        "benchmark": "engine",
        "machine": machine(),
        "threads": options.threads,
        "shapes": _of_others(options),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        for name in options.shape:
            shape = SHAPES[name].of_depth(options.layers or DEPTHS[name])
            path = gguf_file(shape, folder)
            print(f"\n{name}: {shape.layers} layers, {path.stat().st_size / 1e9:.2f} GB in Q4_0")
            setting = Setting(path, shape, options.threads)
            measured = Bench(setting, options, Path(temporary)).run()
            result["shapes"] = _in_order([*result["shapes"], measured])
            _write(result, options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
