"""The demo's twins at three learning rates each: is the dense twin tuned as well as the MoE?

    python experiments/demo_learning_rates.py --twin dense --rates 6e-3 1.2e-2 2.4e-2
    python experiments/demo_learning_rates.py --twin moe --rates 3e-3 6e-3 1.2e-2

Trains one twin of `mixtura demo` at each rate, on the same text in the same order, and writes
experiments/results/demo_learning_rates-TWIN.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from mixtura.demo.recipes import twin_recipes
from mixtura.train import PlainView, train

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--twin", choices=["moe", "dense"], required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, float]] = []
    for rate in options.rates:
        overrides = (f"learning_rates.{options.twin}={rate}",)
        recipe = twin_recipes(options.steps, overrides)[options.twin]
        with tempfile.TemporaryDirectory() as folder:
            summary = train(recipe, Path(folder) / "run", view=PlainView())
        assert summary.heldout_bits_per_byte is not None
        rows.append({"learning_rate": rate, "heldout_bits_per_byte": summary.heldout_bits_per_byte})
        print(f"{options.twin} at {rate:g}: {summary.heldout_bits_per_byte:.4f} bits per byte")
    result = {
        "experiment": "demo_learning_rates",
        "command": f"python experiments/demo_learning_rates.py --twin {options.twin} --rates "
        + " ".join(f"{rate:g}" for rate in options.rates)
        + f" --steps {options.steps} --threads {options.threads}",
        "twin": options.twin,
        "steps": options.steps,
        "tokens": options.steps * recipe.train.tokens_per_step,
        "torch": torch.__version__,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"demo_learning_rates-{options.twin}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
