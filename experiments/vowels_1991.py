"""The vowels of 1991: local experts against back-propagation networks, each with every error.

    python -m pip install 'mixtura[experiments]'
    python experiments/vowels_1991.py

Jacobs, Jordan, Nowlan and Hinton, "Adaptive Mixtures of Local Experts" (Neural Computation 3,
1991), section 3. A system sees two formants and says which of two similar vowels was spoken: [i] or
[I], [a] or [ʌ]. It trains by plain gradient descent on the whole training set, with a fixed step
and no momentum, until its squared error is 0.08 per case. Each system tries the same step sizes
from the same initial weights, as in the paper; the best step is the one with the fewest epochs on
average, a simulation that never arrives counted at the cap. All simulations of a system train at
once. Writes experiments/results/vowels_1991.json after each system; a second call goes on from
there. Beside ours the file holds the paper's table. Takes some minutes on one thread.

S simulations, B cases, E experts, O outputs (one).
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peterson_barney import Vowels, vowels
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from mixtura.errors import MixturaError
from mixtura.files import atomic_text
from mixtura.models.historic.local_experts import (
    ERRORS,
    LocalExperts,
    LocalExpertsConfig,
    cooperative_error,
)

RESULTS = Path(__file__).parent / "results" / "vowels_1991.json"
CRITERION = 0.08
# An expert whose mean mixing proportion over the training cases lies below this is unused.
UNUSED_BELOW = 0.01
TASK = (
    "F1 and F2 over 1000; [i] and [a] are 0, [I] and [ʌ] are 1; speakers 1 to 50 of the table "
    "train, 51 to 75 test, 2 utterances each; stops where the blend's mean squared error over the "
    f"training cases is {CRITERION}; epochs are updates, counted at the cap where it never is; an "
    f"expert is unused where its mean proportion over the training cases is below {UNUSED_BELOW}"
)
PAPER = [
    {"system": "4 experts", "train_percent": 88, "test_percent": 90, "epochs": 1124, "std": 23},
    {"system": "8 experts", "train_percent": 88, "test_percent": 90, "epochs": 1083, "std": 12},
    {"system": "BP 6 hidden", "train_percent": 88, "test_percent": 90, "epochs": 2209, "std": 83},
    {"system": "BP 12 hidden", "train_percent": 88, "test_percent": 90, "epochs": 2435, "std": 124},
]

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a row of results depends on, beside the system."""

    simulations: int
    steps: tuple[float, ...]
    cap: int
    seed: int


@dataclass(frozen=True, slots=True)
class Trained:
    """S simulations that reached the criterion, or the cap: their weights and epochs."""

    weights: Weights
    epochs_S: Tensor
    reached_S: Tensor


def systems() -> dict[str, LocalExpertsConfig]:
    """Name -> config. One output says which of a pair of vowels it was: 24 weights against 25."""
    tree = {"inputs": 2, "outputs": 1, "output": "sigmoid"}
    found: dict[str, LocalExpertsConfig] = {}
    for hidden in (6, 12):
        # One expert behind a gate that has no choice.
        found[f"BP {hidden} hidden"] = LocalExpertsConfig.parse(
            {**tree, "num_experts": 1, "hidden": [hidden], "loss": "cooperative"}
        )
    for loss in ERRORS:
        for experts in (4, 8):
            found[f"{experts} experts, {loss}"] = LocalExpertsConfig.parse(
                {**tree, "num_experts": experts, "loss": loss}
            )
    return found


def train(
    config: LocalExpertsConfig, data: Vowels, steps: tuple[float, ...], settings: Settings
) -> Trained:
    """Every simulation with every step: S = simulations x steps, those of the first step first."""
    models = [fresh(config, settings.seed + number) for number in range(settings.simulations)]
    once, _ = stack_module_state(models)
    weights = {
        name: value.detach().repeat(len(steps), *[1] * (value.dim() - 1))
        for name, value in once.items()
    }
    model, target_BO = models[0], data.second_of_pair_BO

    def error(one: Weights) -> tuple[Tensor, Tensor]:
        output = functional_call(model, one, (data.formants_BI,))
        return model.error(output, target_BO).mean(), cooperative_error(output, target_BO).mean()

    gradients = vmap(grad(error, has_aux=True))
    step_S = torch.tensor(steps).repeat_interleave(settings.simulations)
    final = {name: value.clone() for name, value in weights.items()}
    epochs_S = torch.full_like(step_S, settings.cap, dtype=torch.long)
    reached_S = torch.zeros_like(step_S, dtype=torch.bool)
    # The simulations that still train; the others leave the batch.
    alive_S = torch.arange(len(step_S))
    for epoch in range(settings.cap + 1):
        gradient, squared_S = gradients(weights)
        there_S = squared_S <= CRITERION
        leaves_S = there_S if epoch < settings.cap else torch.ones_like(there_S)
        if leaves_S.any():
            for name, value in weights.items():
                final[name][alive_S[leaves_S]] = value[leaves_S]
                weights[name], gradient[name] = value[~leaves_S], gradient[name][~leaves_S]
            epochs_S[alive_S[there_S]] = epoch
            reached_S[alive_S[there_S]] = True
            step_S, alive_S = step_S[~leaves_S], alive_S[~leaves_S]
            if len(alive_S) == 0:
                break
        weights = {
            name: value - step_S.view(-1, *[1] * (value.dim() - 1)) * gradient[name]
            for name, value in weights.items()
        }
    return Trained(final, epochs_S, reached_S)


def fresh(config: LocalExpertsConfig, seed: int) -> LocalExperts:
    torch.manual_seed(seed)
    return LocalExperts(config)


def rows_of(
    name: str, trained: Trained, settings: Settings, train_set: Vowels, test_set: Vowels
) -> list[dict[str, Any]]:
    """One row for each step size, of means over its simulations."""
    model = fresh(systems()[name], 0)

    def answers(split: Vowels) -> tuple[Tensor, Tensor]:
        def one(weights: Weights) -> tuple[Tensor, Tensor]:
            output = functional_call(model, weights, (split.formants_BI,))
            return output.blended_BO, output.probs_BE

        blended_SBO, probs_SBE = vmap(one)(trained.weights)
        right_SBO = (blended_SBO > 0.5) == (split.second_of_pair_BO > 0.5)
        return right_SBO.flatten(1).double().mean(1), probs_SBE.mean(1)

    train_S, probs_SE = answers(train_set)
    test_S, _ = answers(test_set)
    unused_S = (probs_SE < UNUSED_BELOW).sum(1).double()
    rows: list[dict[str, Any]] = []
    for place, step in enumerate(settings.steps):
        here = slice(place * settings.simulations, (place + 1) * settings.simulations)
        epochs = trained.epochs_S[here].double()
        rows.append(
            {
                "system": name,
                "weights": weights_of(model),
                "step": step,
                "reached": int(trained.reached_S[here].sum()),
                "epochs": round(epochs.mean().item(), 1),
                "std": round(epochs.std().item(), 1),
                "train_percent": round(100 * train_S[here].mean().item(), 1),
                "test_percent": round(100 * test_S[here].mean().item(), 1),
                "unused_experts": round(unused_S[here].mean().item(), 2),
            }
        )
    return rows


def weights_of(model: LocalExperts) -> int:
    """Parameters that learn; a gate over one expert has nothing to learn."""
    gate = model.gate if model.config.num_experts > 1 else torch.nn.Identity()
    return sum(p.numel() for part in (model.experts, gate) for p in part.parameters())


def best_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row of each system with the fewest epochs on average."""
    names = dict.fromkeys(row["system"] for row in rows)
    return [min((r for r in rows if r["system"] == n), key=lambda r: r["epochs"]) for n in names]


def line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['system']:22} step {row['step']:<4g} {row['epochs']:7.0f} epochs (std "
        f"{row['std']:5.0f}), {row['reached']:2} arrived, train {row['train_percent']:.1f}%, "
        f"test {row['test_percent']:.1f}%, unused experts {row['unused_experts']:.2f}"
    )


def finished_rows(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """The rows of an earlier call with the same settings."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    same = earlier["settings"] == json.loads(json.dumps(asdict(settings)))
    return earlier["rows"] if same else []


def result(rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    return {
        "experiment": "vowels_1991",
        "command": f"python experiments/vowels_1991.py --simulations {settings.simulations}"
        " --steps "
        + " ".join(f"{step:g}" for step in settings.steps)
        + f" --cap {settings.cap} --seed {settings.seed} --threads {torch.get_num_threads()}",
        "settings": asdict(settings),
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "dtype": "float32",
        },
        "cpu_seconds_of_this_call": round(time.process_time()),
        "task": TASK,
        "paper": PAPER,
        "best": best_of(rows),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=25, help="per system and step (25)")
    parser.add_argument(
        "--steps",
        type=float,
        nargs="+",
        default=[2.5, 5, 10, 20, 40],
        help="step sizes, on the mean error per case (2.5 5 10 20 40)",
    )
    parser.add_argument("--cap", type=int, default=3000, help="most epochs (3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first simulation (0)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    if options.simulations < 2:
        parser.error(
            f"--simulations {options.simulations}: give 2 or more, the table has deviations"
        )
    torch.set_num_threads(options.threads)
    settings = Settings(options.simulations, tuple(options.steps), options.cap, options.seed)
    try:
        run(settings, options.out)
    except MixturaError as error:
        parser.exit(2, f"{error}\n")


def run(settings: Settings, path: Path) -> None:
    train_set, test_set = vowels()
    rows = finished_rows(path, settings)
    finished = {row["system"] for row in rows}
    left = {name: config for name, config in systems().items() if name not in finished}
    start = time.monotonic()
    for place, (name, config) in enumerate(left.items(), 1):
        trained = train(config, train_set, settings.steps, settings)
        rows += rows_of(name, trained, settings, train_set, test_set)
        found = result(rows, settings)
        atomic_text(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        print(line(found["best"][-1]))
        minutes = (time.monotonic() - start) / place * (len(left) - place) / 60
        print(f"  {place} of {len(left)} systems, about {minutes:.0f} min left", file=sys.stderr)
    print(json.dumps({"results": str(path), "best": best_of(rows)}))


if __name__ == "__main__":
    main()
