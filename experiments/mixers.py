"""Each kind of mixer, trained in an MoE and in its dense twin.

    python experiments/mixers.py
    python experiments/mixers.py --only "short_conv, MoE" "short_conv, dense"

Four layers of width 64: three with the mixer, and attention in the last one; `latent` has latent
attention in all four. An MoE has 8 experts of width 64, of which a token takes two. The dense twin
has an FFN of width 128, the same work on a token. Both learn the bytes of Python's standard library
with the same rate. Writes experiments/results/mixers.json.
"""

from collections.abc import Mapping, Sequence

from findings import BITS, claim, compare, median_of, names, over_seeds, worst_layer
from sweep import Options, Row, Variant

from mixtura.config import Tree

TRAINING = ("model.layers=4", "train.steps=400", "train.warmup=40", "train.batch=4")
LATENT = "{kind: latent, heads: 4, kv_rank: 32, nope_dim: 16, turning_dim: 8, value_dim: 16}"
GATED_DELTA = (
    "{kind: gated_delta, key_heads: 2, value_heads: 4, key_dim: 16, value_dim: 16, kernel: 4, "
    "layers: [0, 1, 2]}"
)
MAMBA2 = (
    "{kind: mamba2, heads: 8, head_dim: 16, state_dim: 32, groups: 1, kernel: 4, layers: [0, 1, 2]}"
)
MIXERS: Mapping[str, tuple[str, ...]] = {
    "latent": (f"model.attention={LATENT}",),
    "gated_delta": (f"model.recurrence={GATED_DELTA}",),
    "mamba2": (f"model.recurrence={MAMBA2}",),
    "short_conv": ("model.recurrence={kind: short_conv, kernel: 3, layers: [0, 1, 2]}",),
}
FFNS: Mapping[str, tuple[str, ...]] = {
    "MoE": (
        "model.moe.num_experts=8",
        "model.moe.balance={loss: 0.1, z_loss: 0, scope: global_batch}",
    ),
    "dense": ("model.moe=null", "model.ffn_width=128"),
}
# The largest ratio of the busiest expert's load to the mean that counts as balanced.
BALANCED = 1.5


def variants(options: Options) -> list[Variant]:
    known = {
        f"{mixer}, {ffn}": (*TRAINING, *of_mixer, *of_ffn)
        for mixer, of_mixer in MIXERS.items()
        for ffn, of_ffn in FFNS.items()
    }
    return [
        Variant(name, options.recipe(*overrides), options.seeds)
        for name, overrides in known.items()
        if not options.only or name in options.only
    ]


def claims(rows: Sequence[Row]) -> list[Tree]:
    """Experts are balanced over the last 100 steps, and the MoE predicts better than its twin."""
    found: list[Tree] = []
    for mixer in MIXERS:
        moe, dense = (f"{mixer}, {ffn}" for ffn in FFNS)
        if not {moe, dense} <= set(names(rows)):
            continue
        load = max(worst_layer(rows, moe, "last_steps", "max_over_mean_load"))
        text = f"{moe}: max/mean load under {BALANCED}"
        found.append(claim(text, holds=load < BALANCED, max_over_mean_load=load))
        bits = {name: over_seeds(rows, name, BITS).mean for name in (moe, dense)}
        text = f"{moe}: fewer bits per byte than {dense}"
        found.append(claim(text, holds=bits[moe] < bits[dense], moe=bits[moe], dense=bits[dense]))
    return found


def main() -> None:
    columns = ("mixer", "bits per byte", "spread", "parameters", "active", "max/mean load",
               "tokens/s of CPU")  # fmt: skip
    compare(__file__, __doc__, variants, columns, _line, claims)


def _line(rows: Sequence[Row], name: str) -> list[str]:
    bits = over_seeds(rows, name, BITS)
    counts = [median_of(rows, name, f"{kind}_parameters") for kind in ("total", "active")]
    loads = worst_layer(rows, name, "last_steps", "max_over_mean_load") if "MoE" in name else []
    return [
        name,
        f"{bits.mean:.4f}",
        f"{bits.width:.4f}",
        *(f"{count:,.0f}" for count in counts),
        f"{max(loads):.2f}" if loads else "",
        f"{median_of(rows, name, 'tokens_per_cpu_second'):,.0f}",
    ]


if __name__ == "__main__":
    main()
