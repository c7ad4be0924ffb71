"""One run of a sweep, in a process of its own: train a recipe, measure it, write the measures.

    python experiments/one_run.py RECIPE.json MEASURES.json

RECIPE.json is a recipe as `Recipe.tree()` gives it; `train.threads` should be 1, so that the
process's CPU time is the work of one core, however busy the machine. Nothing else is written, and
MEASURES.json appears whole or not at all.

L MoE layers, E experts.
"""

import argparse
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from time import monotonic, process_time
from typing import Any

import torch
from torch import Tensor

from mixtura.config import Tree
from mixtura.data import Corpus
from mixtura.errors import MixturaError
from mixtura.files import atomic_text
from mixtura.moe import Dropless, Routing, moe_layers
from mixtura.moe.load import coefficient_of_variation, dropped_share, importance, load
from mixtura.moe.load import max_over_mean as busiest_over_mean
from mixtura.runs import Recipe
from mixtura.train import Trainer, View, build_trainer, prepare_corpus

WINDOW = 100
_SECONDS_BETWEEN_LINES = 5.0


@dataclass
class LoadCount:
    """Load and importance of each layer's experts, summed over the forward passes seen."""

    load_LE: dict[int, Tensor] = field(default_factory=dict)
    importance_LE: dict[int, Tensor] = field(default_factory=dict)
    dropped_L: dict[int, list[float]] = field(default_factory=dict)
    each_pass_L: dict[int, list[float]] = field(default_factory=dict)

    def add(self, layer: int, routing: Routing) -> None:
        load_E, importance_E = load(routing), importance(routing).detach().double()
        self.load_LE[layer] = self.load_LE.get(layer, 0) + load_E
        self.importance_LE[layer] = self.importance_LE.get(layer, 0) + importance_E
        self.dropped_L.setdefault(layer, []).append(float(dropped_share(routing)))
        self.each_pass_L.setdefault(layer, []).append(float(busiest_over_mean(load_E)))

    def measures(self) -> Tree:
        return {
            "max_over_mean_load": [float(busiest_over_mean(e)) for e in self.load_LE.values()],
            "max_over_mean_load_of_a_batch": [fmean(each) for each in self.each_pass_L.values()],
            "cv_load": [float(coefficient_of_variation(e)) for e in self.load_LE.values()],
            "cv_importance": [
                float(coefficient_of_variation(e)) for e in self.importance_LE.values()
            ],
            "dropped_share": [fmean(shares) for shares in self.dropped_L.values()],
        }


@contextmanager
def counted(trainer: Trainer) -> Iterator[LoadCount]:
    """Counts what every MoE layer routes inside the block."""
    count = LoadCount()

    def hook_of(layer: int) -> Any:
        return lambda _module, _arguments, output: count.add(layer, output.routing)

    hooks = [
        layer.register_forward_hook(hook_of(number))
        for number, layer in enumerate(moe_layers(trainer.decoder))
    ]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


class Clock:
    """CPU seconds of each step, and a line now and then with the time left."""

    def __init__(self, trainer: Trainer, name: str) -> None:
        self._trainer, self._name = trainer, name
        self._began, self._next_line = monotonic(), 0.0
        self.cpu_seconds: list[float] = []
        self.losses: list[float] = []

    def train(self, steps: int) -> None:
        for _ in range(steps):
            before = process_time()
            report = self._trainer.step()
            self.cpu_seconds.append(process_time() - before)
            self.losses.append(report.loss)
            self._tell()

    def _tell(self) -> None:
        now, done, steps = monotonic(), self._trainer.steps_done, self._trainer.config.steps
        if now >= self._next_line or done == steps:
            self._next_line = now + _SECONDS_BETWEEN_LINES
            left = (now - self._began) / done * (steps - done)
            print(
                f"  {self._name}: step {done}/{steps}, loss {self.losses[-1]:.3f}, "
                f"{left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def run(recipe: Recipe, corpus: Corpus) -> Tree:
    """Train to the last step and measure."""
    began = monotonic()
    trainer = build_trainer(recipe, corpus)
    clock = Clock(trainer, recipe.name)
    window = min(WINDOW, recipe.train.steps)
    clock.train(recipe.train.steps - window)
    with counted(trainer) as last_steps:
        clock.train(window)
    before = process_time()
    with counted(trainer) as heldout:
        bits_per_byte = trainer.evaluate()
    evaluation_seconds = process_time() - before
    model = recipe.model
    return {
        "heldout_bits_per_byte": bits_per_byte,
        "heldout_bits_per_byte_dropless": _dropless(trainer, bits_per_byte),
        "train_loss": fmean(clock.losses[-window:]),
        "last_steps": last_steps.measures(),
        "heldout": heldout.measures(),
        "tokens": trainer.tokens_done,
        "tokens_per_cpu_second": recipe.train.tokens_per_step / median(clock.cpu_seconds),
        "evaluation_tokens_per_cpu_second": recipe.train.eval_tokens / evaluation_seconds,
        "cpu_seconds": sum(clock.cpu_seconds),
        "seconds": monotonic() - began,
        "total_parameters": model.total_parameters(),
        "active_parameters": model.active_parameters("A"),
        "flops_per_token": model.flops_per_token(recipe.train.length),
        "weights_and_optimizer_bytes": _resident_bytes(trainer),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _dropless(trainer: Trainer, configured: float) -> float:
    """Held-out bits per byte with every row computed by the expert that it chose."""
    routers = [layer.router for layer in moe_layers(trainer.decoder)]
    if all(isinstance(router.capacity, Dropless) for router in routers):
        return configured
    kept = [router.capacity for router in routers]
    for router in routers:
        router.capacity = Dropless()
    bits_per_byte = trainer.evaluate()
    for router, capacity in zip(routers, kept, strict=True):
        router.capacity = capacity
    return bits_per_byte


def _resident_bytes(trainer: Trainer) -> int:
    """Weights, buffers and the optimizer's moments; no gradients, no activations."""
    moments = [
        value
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    decoder = trainer.decoder
    return sum(t.nbytes for t in [*decoder.parameters(), *decoder.buffers(), *moments])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one recipe and measure it.")
    parser.add_argument("recipe", type=Path, help="a recipe as JSON")
    parser.add_argument("measures", type=Path, help="where the measures go, as JSON")
    options = parser.parse_args()
    recipe = Recipe.parse(json.loads(options.recipe.read_text("utf-8")), str(options.recipe))
    try:
        measures = run(recipe, prepare_corpus(recipe, View()))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except MixturaError as error:
        raise SystemExit(f"{recipe.name}: {error}") from error
    atomic_text(options.measures, json.dumps(measures, indent=1) + "\n")


if __name__ == "__main__":
    main()
