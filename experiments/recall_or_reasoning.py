"""Recall against reasoning: does an MoE gain where memory counts, and lose where steps count?

    python experiments/recall_or_reasoning.py

Three decoders of equal depth and width meet two tasks of `mixtura.data.synthetic`: an MoE, a dense
twin of its active parameters and a dense twin of its total parameters. `recall` asks for facts of a
fixed random table, all of them seen in training; `composition` asks where a walk of 1 to 4 hops
ends under a mapping that is written in the context, and is marked on mappings never trained on.

At each task every model tries the same learning rates, in runs of half the length with a seed of
their own, and keeps the one with the lowest training loss at the end. Then it trains once with each
seed, which decides weights, table and questions. Steps, batches and tokens are the same for all
three. Each finished run is a file in --runs, and a second call goes on from there.

A difference between two models counts as shown where their means lie further apart than the spread
(best seed less worst) of the one and of the other together.
"""

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from time import monotonic, process_time
from typing import Any

import torch

from mixtura.data import Batch
from mixtura.data.synthetic import (
    Composition,
    CompositionConfig,
    Recall,
    RecallConfig,
    answer_counts,
)
from mixtura.errors import MixturaError
from mixtura.files import atomic_text
from mixtura.models import DecoderConfig, LanguageModel
from mixtura.runs import TrainConfig
from mixtura.shapes import dense_of_total, dense_twin
from mixtura.train import Trainer, build_decoder

RESULTS = Path(__file__).parent / "results" / "recall_or_reasoning.json"
TASKS = ("recall", "composition")
MODELS = ("moe", "dense_active", "dense_total")
TRIAL_SEED = 100
HELDOUT_BATCHES = 16
# What these runs cannot show, whatever their figures.
LIMITS = [
    "other sizes, other tasks: each is one small instance of remembering and of reasoning",
    "longer training: every model stops in the middle of learning to take two hops and more",
    "equal time: the dense twin of the total parameters computes some six times as much a token",
]
_SECONDS_BETWEEN_LINES = 10.0

Task = Recall | Composition


@dataclass(frozen=True, slots=True)
class Run:
    """One training; `trial` ones choose a learning rate and enter no mean."""

    task: str
    model: str
    learning_rate: float
    seed: int
    steps: int
    trial: bool

    @property
    def name(self) -> str:
        kind = "trial" if self.trial else "run"
        return f"{kind}-{self.task}-{self.model}-{self.learning_rate:g}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the results."""

    rates: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    steps: Mapping[str, int]

    def trials(self, task: str, model: str) -> list[Run]:
        steps = max(1, self.steps[task] // 2)
        return [Run(task, model, rate, TRIAL_SEED, steps, True) for rate in self.rates[task]]

    def finals(self, task: str, model: str, rate: float) -> list[Run]:
        return [Run(task, model, rate, seed, self.steps[task], False) for seed in self.seeds]


def build_task(name: str, seed: int) -> Task:
    if name == "recall":
        # 24,576 facts of 6 bits each; an epoch is 24 steps.
        return Recall(RecallConfig(entities=256, relations=96, values=64, batch=1024, seed=seed))
    return Composition(CompositionConfig(symbols=8, hops=4, questions=16, batch=64, seed=seed))


def configs(task_name: str) -> dict[str, DecoderConfig]:
    """The three models; they differ in their FFNs alone."""
    task = build_task(task_name, 0)
    moe = DecoderConfig.parse(
        {
            "layers": 3,
            "width": 32,
            "vocabulary": task.vocabulary,
            "context": task.length,
            "attention": {"heads": 4, "kv_heads": 4, "head_dim": 8},
            "moe": {
                "num_experts": 32,
                "top_k": 2,
                "expert_width": 24,
                "router": {"kind": "softmax_topk", "choosing_bias": True},
                "balance": {"loss": 0.005, "scope": "global_batch"},
            },
        }
    )
    twins = {"dense_active": dense_twin(moe, 1), "dense_total": dense_of_total(moe, 1)}
    dense = {name: DecoderConfig(**twin.model_dump()) for name, twin in twins.items()}
    return {"moe": moe, **dense}


def train(run: Run) -> dict[str, Any]:
    """Train to the last step, and mark the answers."""
    task = build_task(run.task, run.seed)
    config = TrainConfig(
        steps=run.steps,
        batch=task.config.batch,
        length=task.length,
        lr=run.learning_rate,
        warmup=run.steps // 12,
        seed=run.seed,
        device="cpu",
    )
    decoder = build_decoder(configs(run.task)[run.model], run.seed)
    trainer = Trainer(config, decoder, task, lambda: ())
    began, cpu_began, next_line = monotonic(), process_time(), 0.0
    losses: list[float] = []
    for step in range(1, run.steps + 1):
        losses.append(trainer.step().loss)
        if monotonic() >= next_line:
            next_line = monotonic() + _SECONDS_BETWEEN_LINES
            left = (monotonic() - began) / step * (run.steps - step)
            tell(f"  {run.name}: step {step}/{run.steps}, loss {losses[-1]:.3f}, {left:.0f} s left")
    cpu_seconds = process_time() - cpu_began
    return {
        **asdict(run),
        "train_loss": fmean(losses[-max(1, run.steps // 10) :]),
        "accuracy": accuracy(decoder, task),
        "tokens": trainer.tokens_done,
        "cpu_seconds": round(cpu_seconds, 1),
    }


@torch.no_grad()
def accuracy(decoder: LanguageModel, task: Task) -> dict[str, float]:
    """By measure: all facts of a table, or each hop count over held-out mappings."""
    decoder.eval()
    batches: Iterable[Batch]
    batches = task.every_fact() if isinstance(task, Recall) else task.heldout(HELDOUT_BATCHES)
    right: Counter[str] = Counter()
    due: Counter[str] = Counter()
    for batch in batches:
        for label, counts in answer_counts(decoder(batch.tokens_BS).logits_BSV, batch).items():
            right[measure(label)] += counts.right
            due[measure(label)] += counts.due
    return {name: right[name] / due[name] for name in sorted(due)}


def measure(label: int) -> str:
    """A batch's label by name: 0 stands for facts, others are hop counts."""
    return "facts" if label == 0 else f"{label} hops" if label > 1 else "1 hop"


class Sweep:
    """Runs what the folder does not hold yet."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self._steps_left = {
            (task, model): sum(
                run.steps for run in [*plan.trials(task, model), *plan.finals(task, model, 1.0)]
            )
            for task in TASKS
            for model in MODELS
        }
        self._seconds_per_step: dict[tuple[str, str], float] = {}

    def results(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """By task and model: the trials, then the runs at the chosen rate."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for task in TASKS:
            for model in MODELS:
                trials = [self._result(run) for run in self.plan.trials(task, model)]
                best = min(trials, key=lambda trial: trial["train_loss"])
                finals = self.plan.finals(task, model, best["learning_rate"])
                found[task, model] = trials + [self._result(run) for run in finals]
        return found

    def _result(self, run: Run) -> dict[str, Any]:
        path = self.folder / f"{run.name}.json"
        self._steps_left[run.task, run.model] -= run.steps
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if asdict(run).items() <= kept.items():
                return kept
        began = monotonic()
        result = train(run)
        atomic_text(path, json.dumps(result, indent=1) + "\n")
        self._seconds_per_step[run.task, run.model] = (monotonic() - began) / run.steps
        marked = ", ".join(f"{name} {share:.3f}" for name, share in result["accuracy"].items())
        tell(f"{run.name}: {marked}; about {self._minutes_left():.0f} min left in all")
        return result

    def _minutes_left(self) -> float:
        """What has not run yet counts at the slowest pace seen."""
        slowest = max(self._seconds_per_step.values())
        return sum(
            steps * self._seconds_per_step.get(key, slowest) / 60
            for key, steps in self._steps_left.items()
        )


def summary(runs: list[dict[str, Any]], config: DecoderConfig) -> dict[str, Any]:
    """One model at one task; `spread` is the best seed less the worst."""
    trials = [run for run in runs if run["trial"]]
    finals = [run for run in runs if not run["trial"]]
    by_measure = {name: [run["accuracy"][name] for run in finals] for name in finals[0]["accuracy"]}
    return {
        "total_parameters": config.total_parameters(),
        "active_parameters": config.active_parameters("A"),
        "flops_per_token": config.flops_per_token(),
        "ffn_width": config.ffn_width,
        "learning_rate": finals[0]["learning_rate"],
        "trials": {f"{trial['learning_rate']:g}": trial["train_loss"] for trial in trials},
        "steps": finals[0]["steps"],
        "tokens": finals[0]["tokens"],
        "cpu_seconds": [run["cpu_seconds"] for run in finals],
        "train_loss": [run["train_loss"] for run in finals],
        "accuracy": {
            name: {
                "mean": fmean(values),
                "spread": max(values) - min(values),
                "by_seed": values,
            }
            for name, values in by_measure.items()
        },
    }


def comparisons(models: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pair of models at every measure of one task."""
    rows: list[dict[str, Any]] = []
    for one, other in combinations(models, 2):
        for name, first in models[one]["accuracy"].items():
            second = models[other]["accuracy"][name]
            difference = first["mean"] - second["mean"]
            spread = first["spread"] + second["spread"]
            shown = abs(difference) > spread
            rows.append(
                {
                    "measure": name,
                    "models": [one, other],
                    "difference": difference,
                    "spreads_together": spread,
                    "shown": shown,
                    "statement": statement(name, one, other, difference, shown),
                }
            )
    return rows


def statement(name: str, one: str, other: str, difference: float, shown: bool) -> str:
    points = f"{abs(difference) * 100:.1f} points"
    if not shown:
        return f"{name}: no difference shown between {one} and {other} ({points} apart)"
    ahead, behind = (one, other) if difference > 0 else (other, one)
    return f"{name}: {ahead} is {points} ahead of {behind}, beyond the spreads"


def report(sweep: Sweep, threads: int) -> dict[str, Any]:
    results = sweep.results()
    tasks: dict[str, Any] = {}
    for task in TASKS:
        shapes = configs(task)
        models = {model: summary(results[task, model], shapes[model]) for model in MODELS}
        tasks[task] = {
            "task": build_task(task, 0).config.model_dump(exclude={"seed"}),
            "models": models,
            "guess": guess(task),
            "comparisons": comparisons(models),
        }
    rows = [row for task in TASKS for row in tasks[task]["comparisons"]]
    plan = sweep.plan
    return {
        "experiment": "recall_or_reasoning",
        "command": command(plan, threads),
        "seeds": plan.seeds,
        "trial_seed": TRIAL_SEED,
        "rule": "shown: the means lie further apart than the spread (best seed less worst) of the "
        "one and of the other together",
        "machine": {
            "cores": os.cpu_count(),
            "threads": threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "dtype": "float32",
        },
        "cpu_seconds": round(sum(run["cpu_seconds"] for runs in results.values() for run in runs)),
        "shown": [row["statement"] for row in rows if row["shown"]],
        "not_shown": [row["statement"] for row in rows if not row["shown"]] + LIMITS,
        "tasks": tasks,
    }


def guess(task_name: str) -> float:
    """How often somebody is right who knows the task, but neither the table nor the mapping."""
    task = build_task(task_name, 0)
    return 1 / (task.config.values if isinstance(task, Recall) else task.config.symbols - 1)


def command(plan: Plan, threads: int) -> str:
    words = ["python experiments/recall_or_reasoning.py --seeds", *map(str, plan.seeds)]
    for task in TASKS:
        words += [f"--{task}-steps {plan.steps[task]} --{task}-rates"]
        words += [f"{rate:g}" for rate in plan.rates[task]]
    return " ".join([*words, f"--threads {threads}"])


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    for task, rates, steps, note in (
        ("recall", [1e-2, 2e-2, 4e-2], 720, "; 24 steps ask for every fact once"),
        ("composition", [2.5e-3, 5e-3, 1e-2, 2e-2], 1000, ""),
    ):
        listed = " ".join(f"{rate:g}" for rate in rates)
        parser.add_argument(
            f"--{task}-rates",
            type=float,
            nargs="+",
            metavar="RATE",
            default=rates,
            help=f"learning rates that each model tries ({listed})",
        )
        parser.add_argument(
            f"--{task}-steps", type=int, default=steps, help=f"of each run ({steps}){note}"
        )
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/recall_or_reasoning"),
        help="one file for each finished run (runs/recall_or_reasoning)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    given = parser.parse_args()
    if len(set(given.seeds)) < max(2, len(given.seeds)):
        parser.error(f"--seeds {given.seeds}: give at least two, each once; one has no spread")
    return given


def main() -> None:
    given = options()
    torch.set_num_threads(given.threads)
    steps = {"recall": given.recall_steps, "composition": given.composition_steps}
    rates = {"recall": tuple(given.recall_rates), "composition": tuple(given.composition_rates)}
    plan = Plan(rates, tuple(given.seeds), steps)
    try:
        found = report(Sweep(plan, given.runs), given.threads)
        atomic_text(given.out, json.dumps(found, indent=1) + "\n")
    except MixturaError as error:
        tell(f"{error}")
        sys.exit(2)
    for task in TASKS:
        for row in found["tasks"][task]["comparisons"]:
            print(row["statement"])
    print(json.dumps({"results": str(given.out)}))


if __name__ == "__main__":
    main()
