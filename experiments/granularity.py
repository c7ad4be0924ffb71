"""Few wide experts or many narrow ones, at equal total and equal active parameters.

    python experiments/granularity.py

16 experts of 256 of which a token takes one, 32 of 128 by twos, 128 of 32 by eights: the experts'
weights are the same number in all, and the same number work on a token. Only the gate grows, with
the number of experts. Two routers weigh the single expert: Switch's, and a softmax that is not
renormalised. On the bytes of Python's standard library.
Writes experiments/results/granularity.json.
"""

from collections.abc import Mapping, Sequence

from findings import compare, lower, median_of, names, over_seeds, worst_layer
from sweep import Options, Row, Variant

from mixtura.config import Tree

TRAINING = (
    "train.steps=600",
    "train.warmup=60",
    "train.batch=4",
    "train.router_lr=0.3",
    "model.moe.balance={loss: 0.3, z_loss: 0, scope: global_batch}",
)
SOFTMAX = "model.moe.router={kind: softmax_topk, renormalise: false}"
SHAPES: Mapping[str, tuple[str, ...]] = {
    "16 experts of 256, top-1, Switch": (
        "model.moe.num_experts=16", "model.moe.top_k=1", "model.moe.expert_width=256",
        "model.moe.router={kind: switch}",
    ),
    "16 experts of 256, top-1": (
        "model.moe.num_experts=16", "model.moe.top_k=1", "model.moe.expert_width=256", SOFTMAX,
    ),
    "32 experts of 128, top-2": (
        "model.moe.num_experts=32", "model.moe.top_k=2", "model.moe.expert_width=128", SOFTMAX,
    ),
    "128 experts of 32, top-8": (
        "model.moe.num_experts=128", "model.moe.top_k=8", "model.moe.expert_width=32", SOFTMAX,
    ),
}  # fmt: skip


def variants(options: Options) -> list[Variant]:
    return [
        Variant(name, options.recipe(*TRAINING, *overrides), options.seeds)
        for name, overrides in SHAPES.items()
        if not options.only or name in options.only
    ]


def claims(rows: Sequence[Row]) -> list[Tree]:
    """Each finer shape against each coarser one."""
    present = names(rows)
    pairs = [(fine, coarse) for place, fine in enumerate(present) for coarse in present[:place]]
    verdicts = [lower(rows, fine, coarse) for fine, coarse in pairs]
    return [verdict for verdict in verdicts if verdict is not None]


def main() -> None:
    columns = ("experts", "bits per byte", "spread", "parameters", "active", "max/mean load",
               "tokens/s of CPU")  # fmt: skip
    compare(__file__, __doc__, variants, columns, _line, claims)


def _line(rows: Sequence[Row], name: str) -> list[str]:
    bits = over_seeds(rows, name, "heldout_bits_per_byte")
    counts = [median_of(rows, name, f"{kind}_parameters") for kind in ("total", "active")]
    return [
        name,
        f"{bits.mean:.4f}",
        f"{bits.width:.4f}",
        *(f"{count:,.0f}" for count in counts),
        f"{max(worst_layer(rows, name, 'last_steps', 'max_over_mean_load')):.2f}",
        f"{median_of(rows, name, 'tokens_per_cpu_second'):,.0f}",
    ]


if __name__ == "__main__":
    main()
