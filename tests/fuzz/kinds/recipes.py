"""A recipe: YAML that says everything about a run."""

import re
from pathlib import Path
from random import Random
from typing import Any

import yaml
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import Raw, json_text, odd_value, spoilt_bytes, spoilt_tree
from tests.fuzz.plain_yaml import plain_yaml

_ROUTERS: list[dict[str, Any]] = [
    {"kind": "softmax_topk", "renormalise": True},
    {"kind": "sigmoid_topk"},
    {"kind": "noisy_topk"},
    {"kind": "top_p", "p": 0.5},
    {"kind": "hashed"},
    {"kind": "expert_choice"},
    {"kind": "sinkhorn"},
    {"kind": "deepseek_v3", "groups": 2, "groups_kept": 1},
    {
        "kind": "hierarchical",
        "groups": 2,
        "outer": {"kind": "softmax_topk"},
        "inner": {"kind": "softmax_topk"},
    },
]
_RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "layers": 3,
        "width": 32,
        "context": 64,
        "vocabulary": 257,
        "ffn_width": 48,
        "attention": {
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 16,
            "rope_base": 1e4,
            "rope_scaling": {"kind": "linear", "factor": 2.0},
            "local": {"window": 16, "layers": [0, 2]},
        },
        "moe": {
            "num_experts": 4,
            "top_k": 2,
            "expert_width": 16,
            "shared_width": 8,
            "placement": {"every": 1, "first_dense": 1},
            "router": {"kind": "softmax_topk"},
            "capacity": {"policy": "drop", "factor": 1.25},
            "balance": {"loss": 0.01, "z_loss": 0.001},
        },
    },
    "data": {
        "source": {"kind": "text", "paths": ["corpus"], "domain": "folder"},
        "tokenizer": {"kind": "bpe", "vocabulary": 512},
        "heldout": 0.1,
    },
    "train": {
        "steps": 40,
        "batch": 8,
        "length": 32,
        "lr": 1e-2,
        "warmup": 4,
        "schedule": {"kind": "cosine", "final": 0.1},
        "betas": [0.9, 0.95],
        "eval_every": 20,
        "threads": 1,
    },
}
# What YAML has and JSON has not. A date that is none, and text that is a number in YAML 1.1.
_PIECES = [
    *("2026-13-45", "2026-11-29", "1:30:00", "0o17", "0b1", "1_000", ".inf", ".nan", "~", "yes"),
    *("*a", "&a [*a]", "{<<: *a}", "{<<: {a: 1}}", "!!int x", "!!bool x", "!!timestamp x"),
    *("!!python/object/apply:os.system [ls]", "!!binary x", "!!set {a}", "|\n  x", ">", "? a", "%"),
    *("'''", '"\\x00"', '"\\ud800"', "[&b [x, x], *b, *b]", "{? [1]: 2}", "--- 1", "..."),
]


class Recipes(Kind):
    name = "recipes"
    fast_cases = 40

    def make_valid(self, folder: Path) -> None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(_RECIPE))

    def mutate(self, rng: Random, valid: Path, case: Path) -> None:
        del valid
        moe = {**_RECIPE["model"]["moe"], "router": rng.choice(_ROUTERS)}
        recipe = {**_RECIPE, "model": {**_RECIPE["model"], "moe": moe}}
        match rng.randrange(8):
            case 0:
                text = spoilt_bytes(rng, yaml.safe_dump(recipe).encode())
            case 1:
                # In block style, where indentation counts.
                lines = yaml.safe_dump(recipe).splitlines(keepends=True)
                for _ in range(rng.randint(1, 3)):
                    at = rng.randrange(len(lines))
                    key = re.match(r" *(- |[^:]*: ?)", lines[at])
                    lines[at] = f"{key[0] if key else ''} {rng.choice(_PIECES)}\n"
                text = "".join(lines).encode()
            case _:
                # Flow style, of which JSON is a part.
                text = json_text(spoilt_tree(rng, recipe, odd=_odd), rng).encode()
        (case / "recipe.yaml").write_bytes(text)

    def parse(self, case: Path) -> None:
        plain_yaml((case / "recipe.yaml").read_bytes())

    def read(self, case: Path) -> None:
        from mixtura.models.blueprint import without_weights
        from mixtura.runs import load_recipe

        recipe = load_recipe(case / "recipe.yaml")
        recipe.to_yaml()
        model = recipe.model
        assert model.active_parameters("A") <= model.total_parameters()
        assert model.flops_per_token(32) > 0
        recipe.train.learning_rate(1)
        if len(list(model.weights())) < 200:
            with without_weights():
                model.build()


def _odd(rng: Random) -> Any:
    if rng.randrange(3):
        return odd_value(rng)
    if rng.randrange(2):
        return Raw(rng.choice(_PIECES))
    return rng.choice(
        [
            *({"kind": "lstm_moe"}, {"kind": "bytes"}, {"kind": "file", "path": "/dev/zero"}),
            *({"kind": "stdlib"}, {"kind": "wsd"}, {"kind": "latent", "heads": 2, "kv_rank": 4}),
            *([{"from_layer": 1, "num_experts": 8}], {"only": [1] * 5000}, {"every": 10**9}),
            *("bfloat16", "cuda:99", 4096, 2**20, 2**24, 1e-30, list(range(4096))),
        ]
    )


KINDS = [Recipes()]
