"""Balancing or not, and how: table 6 of the sparsely-gated layer (Shazeer 2017) on a laptop.

    python experiments/balance_ablation.py
    python experiments/balance_ablation.py --only "noisy, no loss" --seeds 0 --out /tmp/one.json

64 experts, top-2, on the bytes of Python's standard library. Four rows give the noisy gate the
paper's weights of the importance and load losses (arXiv 1701.06538, table 6); the others take a
softmax gate: no balancing, Switch's loss at the paper's weight of 0.01 and at 0.3, and the choosing
bias of DeepSeek-V3 with no loss. The softmax gate starts at random, not from zeros as the noisy one
does, and learns at 0.3 of the rate of the rest.

Load and importance are summed over the last 100 training steps, in which each expert's even share
is 3,200 rows a layer; the same is given for held-out text, where the noisy gate has no noise.
Writes experiments/results/balance_ablation.json.
"""

from collections.abc import Mapping, Sequence

from findings import BITS, claim, compare, lower, names, over_seeds, worst_layer
from sweep import Options, Row, Variant

from mixtura.config import Tree

EVEN_ENOUGH = 1.5
COLLAPSING = 4.0

# Short batches: the same text in more steps balances sooner than in fewer.
STEPS = ("train.steps=600", "train.warmup=60", "train.batch=4")
NOISY = (*STEPS, "model.moe.router={kind: noisy_topk}")
SOFTMAX = (*STEPS, "train.router_lr=0.3", "model.moe.router={kind: softmax_topk}")
METHODS: Mapping[str, tuple[str, ...]] = {
    "noisy, no loss": (*NOISY, "model.moe.balance={importance: 0, load: 0}"),
    "noisy, importance 0.2": (*NOISY, "model.moe.balance={importance: 0.2, load: 0}"),
    "noisy, load 0.2": (*NOISY, "model.moe.balance={importance: 0, load: 0.2}"),
    "noisy, both 0.1": (*NOISY, "model.moe.balance={importance: 0.1, load: 0.1}"),
    "softmax, no loss": (*SOFTMAX, "model.moe.balance={loss: 0, z_loss: 0}"),
    "softmax, Switch 0.01": (
        *SOFTMAX,
        "model.moe.balance={loss: 0.01, z_loss: 0, scope: global_batch}",
    ),
    "softmax, Switch 0.3": (
        *SOFTMAX,
        "model.moe.balance={loss: 0.3, z_loss: 0, scope: global_batch}",
    ),
    "softmax, choosing bias": (
        *SOFTMAX,
        "model.moe.router.choosing_bias=true",
        "model.moe.balance={loss: 0, z_loss: 0, bias_rate: 0.001}",
    ),
}
UNBALANCED = {"noisy": "noisy, no loss", "softmax": "softmax, no loss"}


def variants(options: Options) -> list[Variant]:
    return [
        Variant(name, options.recipe(*overrides), options.seeds)
        for name, overrides in METHODS.items()
        if not options.only or name in options.only
    ]


def claims(rows: Sequence[Row]) -> list[Tree]:
    verdicts: list[Tree] = []
    for name in names(rows):
        worst = worst_layer(rows, name, "last_steps", "max_over_mean_load")
        if name in UNBALANCED.values():
            text = f"{name}: max/mean load passes {COLLAPSING:g} in a layer, with every seed"
            verdicts.append(claim(text, holds=min(worst) > COLLAPSING, least=min(worst)))
            continue
        text = f"{name}: max/mean load is at most {EVEN_ENOUGH:g} in all layers, with every seed"
        verdicts.append(claim(text, holds=max(worst) <= EVEN_ENOUGH, most=max(worst)))
        unbalanced = UNBALANCED[name.split(",")[0]]
        better = lower(rows, name, unbalanced) if unbalanced in names(rows) else None
        verdicts += [better] if better else []
    return verdicts


def main() -> None:
    columns = ("router and balance", "bits per byte", "spread", "CV importance", "CV load",
               "max/mean load", "max/mean, held-out")  # fmt: skip
    compare(__file__, __doc__, variants, columns, _line, claims)


def _line(rows: Sequence[Row], name: str) -> list[str]:
    bits = over_seeds(rows, name, BITS)
    worst = [
        max(worst_layer(rows, name, where, measure))
        for where, measure in (
            ("last_steps", "cv_importance"),
            ("last_steps", "cv_load"),
            ("last_steps", "max_over_mean_load"),
            ("heldout", "max_over_mean_load"),
        )
    ]
    return [name, f"{bits.mean:.4f}", f"{bits.width:.4f}", *(f"{figure:.2f}" for figure in worst)]


if __name__ == "__main__":
    main()
