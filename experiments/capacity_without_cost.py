"""More experts for the same work on a token: 4 to 4,096 of them.

    python experiments/capacity_without_cost.py
    python experiments/capacity_without_cost.py --only "4 experts" "256 experts"

Each token takes four experts of width 64 in each of two layers, whichever the number to choose
from: the shape of table 7 of the sparsely-gated layer (Shazeer 2017, arXiv 1701.06538), whose MoE-4
to MoE-4096-h do the same. With four experts all of them work on every token: that row is a dense
model. 1,024 and 4,096 experts stand in 32 and 64 groups under a hierarchical router, two groups and
two experts in each; they are trained with the first seed alone, and no claim is made of them.

Tokens a second are of CPU time at one thread, medians over steps and then over seeds. Training
pays for all weights, as AdamW passes over each of them at every step; evaluation does not. Writes
experiments/results/capacity_without_cost.json.
"""

from collections.abc import Mapping, Sequence

from findings import BITS, compare, lower, median_of, names, over_seeds, worst_layer
from sweep import Options, Row, Variant

from mixtura.config import Tree

FLAT = (4, 16, 64, 256)
# Experts, and the groups that they stand in.
HIERARCHICAL: Mapping[int, int] = {1024: 32, 4096: 64}


def name_of(num_experts: int) -> str:
    return f"{num_experts} experts"


def flat(num_experts: int) -> tuple[str, ...]:
    return (
        f"model.moe.num_experts={num_experts}",
        "model.moe.top_k=4",
        "model.moe.router={kind: softmax_topk}",
        "model.moe.balance={loss: 0.1, z_loss: 0, scope: global_batch}",
    )


def hierarchical(num_experts: int, groups: int) -> tuple[str, ...]:
    gate = "{kind: softmax_topk}"
    router = (
        f"{{kind: hierarchical, groups: {groups}, outer_top_k: 2, outer: {gate}, inner: {gate}}}"
    )
    return (*flat(num_experts), f"model.moe.router={router}")


def variants(options: Options) -> list[Variant]:
    """Three seeds for the flat layers, one for the hierarchical."""
    known = [(experts, flat(experts), options.seeds) for experts in FLAT]
    known += [
        (experts, hierarchical(experts, groups), options.seeds[:1])
        for experts, groups in HIERARCHICAL.items()
    ]
    return [
        Variant(name_of(experts), options.recipe(*overrides), seeds)
        for experts, overrides, seeds in known
        if not options.only or name_of(experts) in options.only
    ]


def claims(rows: Sequence[Row]) -> list[Tree]:
    """Each number of experts against the one before it, and the largest flat one against 4."""
    present = [name_of(experts) for experts in FLAT if name_of(experts) in names(rows)]
    pairs = list(zip(present[1:], present, strict=False))
    if len(present) > 2:
        pairs.append((present[-1], present[0]))
    verdicts = [lower(rows, more, fewer) for more, fewer in pairs]
    return [verdict for verdict in verdicts if verdict is not None]


def main() -> None:
    columns = ("experts", "bits per byte", "spread", "parameters", "active", "training tokens/s",
               "evaluation tokens/s", "weights and AdamW", "peak memory", "max/mean load",
               "seeds")  # fmt: skip
    compare(__file__, __doc__, variants, columns, _line, claims)


def _line(rows: Sequence[Row], name: str) -> list[str]:
    bits = over_seeds(rows, name, BITS)
    counts = [
        median_of(rows, name, measure)
        for measure in ("total_parameters", "active_parameters", "tokens_per_cpu_second",
                        "evaluation_tokens_per_cpu_second")
    ]  # fmt: skip
    memory = [
        median_of(rows, name, measure) / 2**20
        for measure in ("weights_and_optimizer_bytes", "peak_rss_bytes")
    ]
    return [
        name,
        f"{bits.mean:.4f}",
        f"{bits.width:.4f}",
        *(f"{count:,.0f}" for count in counts),
        *(f"{mebibytes:,.0f} MiB" for mebibytes in memory),
        f"{max(worst_layer(rows, name, 'last_steps', 'max_over_mean_load')):.2f}",
        f"{len(bits.values)}",
    ]


if __name__ == "__main__":
    main()
