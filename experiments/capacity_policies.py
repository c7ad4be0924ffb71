"""What becomes of rows that find their expert full: four policies at three capacity factors.

    python experiments/capacity_policies.py

64 experts, top-2, balanced by Switch's loss over the whole batch, on the bytes of Python's standard
library. Each sequence of 256 tokens has a capacity of its own: 8 rows an expert at factor 1.0.
`drop` loses the row that finds its expert full, `reroute` gives it to the next-best expert with
room, `wave` computes it in a further pass; `dropless` has no capacity.

Each model is evaluated twice on the same held-out text: by the rule that it was trained with, and
dropless, as generation is. Tokens a second are of CPU time, medians over steps and then over seeds.
Writes experiments/results/capacity_policies.json.
"""

from collections.abc import Sequence
from statistics import fmean

from findings import BITS, claim, compare, lower, median_of, names, over_seeds, worst_layer
from sweep import Options, Row, Variant

from mixtura.config import Tree

POLICIES = ("drop", "reroute", "wave")
FACTORS = (1.0, 1.25, 2.0)
DROPLESS_BITS = "heldout_bits_per_byte_dropless"
TRAINING = (
    "train.steps=600",
    "train.warmup=60",
    "train.batch=4",
    "train.router_lr=0.3",
    "model.moe.router={kind: softmax_topk}",
    "model.moe.balance={loss: 0.3, z_loss: 0, scope: global_batch}",
)


def capacities() -> dict[str, str]:
    """Variants by name, each with its capacity section."""
    bounded = {
        f"{policy} {factor:g}": f"{{policy: {policy}, factor: {factor}}}"
        for policy in POLICIES
        for factor in FACTORS
    }
    return {"dropless": "{policy: dropless}", **bounded}


def variants(options: Options) -> list[Variant]:
    return [
        Variant(
            name,
            options.recipe(*TRAINING, f"model.moe.capacity={section}"),
            options.seeds,
        )
        for name, section in capacities().items()
        if not options.only or name in options.only
    ]


def claims(rows: Sequence[Row]) -> list[Tree]:
    present = set(names(rows))
    verdicts: list[Tree] = []
    for factor in FACTORS:
        kept = f"wave {factor:g}"
        if kept in present:
            dropped = max(worst_layer(rows, kept, "last_steps", "dropped_share"))
            verdicts.append(claim(f"{kept} drops nothing", holds=dropped == 0, most=dropped))
        pairs = [
            ("dropless", f"drop {factor:g}"),
            (f"reroute {factor:g}", f"drop {factor:g}"),
        ]
        for better, worse in pairs:
            if {better, worse} <= present:
                for measure in (BITS, DROPLESS_BITS):
                    verdict = lower(rows, better, worse, measure)
                    verdicts += [verdict] if verdict else []
    return verdicts


def main() -> None:
    columns = ("policy", "bits per byte, its own rule", "dropless", "spread", "dropped in training",
               "dropped, held-out", "tokens/s of CPU")  # fmt: skip
    compare(__file__, __doc__, variants, columns, _line, claims)


def _line(rows: Sequence[Row], name: str) -> list[str]:
    own, dropless = (over_seeds(rows, name, measure) for measure in (BITS, DROPLESS_BITS))
    dropped = [
        fmean(fmean(row.measures[where]["dropped_share"]) for row in rows if row.name == name)
        for where in ("last_steps", "heldout")
    ]
    speed = median_of(rows, name, "tokens_per_cpu_second")
    return [
        name,
        f"{own.mean:.4f}",
        f"{dropless.mean:.4f}",
        f"{own.width:.4f}",
        *(f"{share:.1%}" for share in dropped),
        f"{speed:,.0f}",
    ]


if __name__ == "__main__":
    main()
