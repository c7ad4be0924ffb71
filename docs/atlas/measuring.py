"""Train the small model of a kind's picture, and look how it routes.

B sequences, S positions, E experts, N routed rows.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from atlas.kinds import Kind
from atlas.measured import LayerRouting, Measured, Setting
from mixtura.data import Corpus
from mixtura.moe import Routing, moe_layers
from mixtura.moe.load import load
from mixtura.runs import Recipe
from mixtura.train import Trainer, build_trainer

# The beginning of a method in a file that is held out under every version of Python.
FILE = "asyncio/queues.py"
SNIPPET = "def _format(self):\n        result = f'maxsize={self._maxsize!r}'"
STEPS = 300
SEED = 0

Tell = Callable[[Trainer, float], None]


def recipe_of(kind: Kind, steps: int = STEPS) -> Recipe:
    return Recipe.parse(
        {
            "name": kind.name,
            "model": {
                "layers": 2,
                "width": 32,
                "context": 128,
                "attention": {"heads": 2, "kv_heads": 2, "head_dim": 16},
                "moe": kind.picture,
            },
            "train": {
                "steps": steps,
                "batch": 16,
                "length": 128,
                "lr": 5e-3,
                "warmup": min(20, steps),
                "seed": SEED,
                "threads": 1,
                "device": "cpu",
            },
        },
        kind.name,
    )


def measure(kind: Kind, recipe: Recipe, corpus: Corpus, tell: Tell) -> Measured:
    """Train the recipe; `tell` hears of every step's loss."""
    trainer = build_trainer(recipe, corpus)
    for _ in range(recipe.train.steps):
        tell(trainer, trainer.step().loss)
    with _heard(trainer) as heldout:
        bits_per_byte = trainer.evaluate()
    with _heard(trainer) as snippet, torch.no_grad():
        trainer.decoder(torch.tensor([list(SNIPPET.encode())]))
    tokens = sum(routing.num_tokens for routing in heldout[0])
    return Measured(
        kind=kind.name,
        command=f"python docs/make_atlas.py --only {kind.name}",
        setting=setting_of(kind, recipe),
        heldout_tokens=tokens,
        heldout_bits_per_byte=round(bits_per_byte, 4),
        file=FILE,
        snippet=SNIPPET,
        layers=tuple(
            _layer(heldout[layer], snippet[layer][0], tokens) for layer in range(len(heldout))
        ),
        machine={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cores": os.cpu_count() or 1,
            "threads": torch.get_num_threads(),
        },
    )


def setting_of(kind: Kind, recipe: Recipe) -> Setting:
    shapes = recipe.model.moe_shapes
    return Setting(
        layers=len(shapes),
        width=recipe.model.width,
        num_experts=shapes[0].num_experts,
        steps=recipe.train.steps,
        tokens_per_step=recipe.train.tokens_per_step,
        seed=recipe.train.seed,
        moe=kind.picture,
    )


@contextmanager
def _heard(trainer: Trainer) -> Iterator[list[list[Routing]]]:
    """Each layer's routings inside the block, pass after pass."""
    layers = moe_layers(trainer.decoder)
    routings: list[list[Routing]] = [[] for _ in layers]

    def hears(layer: int) -> Callable[..., None]:
        return lambda _module, _arguments, output: routings[layer].append(output.routing)

    hooks = [layer.register_forward_hook(hears(index)) for index, layer in enumerate(layers)]
    try:
        yield routings
    finally:
        for hook in hooks:
            hook.remove()


def _layer(heldout: list[Routing], snippet: Routing, tokens: int) -> LayerRouting:
    load_E = torch.stack([load(routing) for routing in heldout]).sum(0)
    computed = sum(int((routing.expert_N < routing.num_experts).sum()) for routing in heldout)
    dropped = sum(int(routing.dropped_N.sum()) for routing in heldout)
    taken_N = snippet.expert_N < snippet.num_experts
    return LayerRouting(
        load=tuple(load_E.tolist()),
        dropped_share=round(dropped / max(computed + dropped, 1), 5),
        experts_per_token=round(computed / tokens, 4),
        groups=snippet.num_groups,
        computed=tuple(
            zip(
                snippet.token_N[taken_N].tolist(),
                snippet.expert_N[taken_N].tolist(),
                [round(weight, 3) for weight in snippet.weight_N[taken_N].tolist()],
                strict=True,
            )
        ),
        dropped=tuple(
            zip(
                snippet.token_N[snippet.dropped_N].tolist(),
                snippet.chosen_N[snippet.dropped_N].tolist(),
                strict=True,
            )
        ),
    )
