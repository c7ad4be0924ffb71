"""An MoE between two LSTMs: do more experts predict better, for the same work a token?

    python experiments/lstm_moe.py
    python experiments/lstm_moe.py --only "4 experts" --seeds 0 --set train.steps=50 --out a.json

Shazeer et al. 2017 (arXiv 1701.06538, table 7) hold a token's work fixed, at four experts of those
there are, and find that more experts predict better. The same here, small: 4, 32 and 256 experts
between two LSTMs, on the bytes of Python's standard library. 256 experts have a gate of two levels,
16 groups of 16, as a flat one would cost more than a third of all other work. All else is equal:
text and its order, tokens, the learning rate, dropout (none, as the text is not read through once),
and the weights 0.1 of the importance and load losses, which are the paper's. The rate is the best
of four for 4 experts and of three for 256 (docs/lab-notes.md).

Writes experiments/results/lstm_moe.json.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from findings import BITS, found, lower, names, over_seeds, print_table, worst_layer
from sweep import Options, Row, Variant, options_for, record, settings, sweep

from mixtura.config import Tree
from mixtura.models.historic import LstmMoEConfig
from mixtura.models.historic.shazeer_2017 import two_levels

BASE = Path(__file__).resolve().parents[1] / "recipes" / "lstm-moe.yaml"
EXPERTS = {"4 experts": 4, "32 experts": 32, "256 experts": 256}
GROUPS = 16
# What the paper's models of as many experts reached after ten epochs of a billion words.
PERPLEXITY = {"4 experts": "45.0", "32 experts": "39.7", "256 experts": "36.0"}


def variants(options: Options) -> list[Variant]:
    one_core = ("train.threads=1", "train.device=cpu")
    found_variants = []
    for name, experts in EXPERTS.items():
        router = two_levels(GROUPS) if experts > GROUPS * GROUPS // 2 else {"kind": "noisy_topk"}
        own = (f"model.moe.num_experts={experts}", f"model.moe.router={router}")
        if not options.only or name in options.only:
            found_variants.append(Variant(name, options.recipe(*one_core, *own), options.seeds))
    return found_variants


def claims(rows: Sequence[Row]) -> list[Tree]:
    """Of each two neighbours the one with more experts predicts better."""
    verdicts = [lower(rows, more, fewer) for fewer, more in pairwise(names(rows))]
    return [verdict for verdict in verdicts if verdict is not None]


def counts(variant: Variant) -> Tree:
    model = variant.recipe.model
    assert isinstance(model, LstmMoEConfig), "the base recipe names model.kind=lstm_moe"
    return {
        "parameters": model.inner_parameters(),
        "operations_per_timestep": model.operations_per_timestep(),
    }


def main() -> None:
    options = options_for(__file__, __doc__, BASE)
    chosen = variants(options)
    rows = sweep(chosen, options.runs)
    columns = ("model", "parameters", "ops a token", "bits per byte", "spread", "max/mean load",
               "the paper's perplexity")  # fmt: skip
    print_table(columns, [_line(variant, rows) for variant in chosen])
    counted = {variant.name: counts(variant) for variant in chosen}
    record(options.out, {**settings(chosen), "counts": counted, **found(rows, claims(rows))})


def _line(variant: Variant, rows: Sequence[Row]) -> list[str]:
    bits, count = over_seeds(rows, variant.name, BITS), counts(variant)
    load = fmean(worst_layer(rows, variant.name, "last_steps", "max_over_mean_load"))
    return [
        variant.name,
        f"{count['parameters']:,}",
        f"{count['operations_per_timestep']:,}",
        f"{bits.mean:.4f}",
        f"{bits.width:.4f}",
        f"{load:.2f}",
        PERPLEXITY[variant.name],
    ]


if __name__ == "__main__":
    main()
