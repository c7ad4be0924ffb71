"""The router losses of transformers' own models, and a block that disables them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

# The weights of router losses in a model's forward pass.
COEFFICIENTS = ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef")


@contextmanager
def own_losses_disabled(model: nn.Module) -> Iterator[None]:
    """A block in which the model's own router losses have weight 0.

    The weights are restored at its end, so that a config that is saved later is the user's.
    """
    kept = [
        (place, name, vars(place)[name])
        for place in _places(model)
        for name in COEFFICIENTS
        if vars(place).get(name)
    ]
    for place, name, _ in kept:
        setattr(place, name, 0.0)
    try:
        yield
    finally:
        for place, name, value in kept:
            setattr(place, name, value)


def _places(model: nn.Module) -> list[object]:
    """Models and their configs, which hold the weights."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs = {id(config): config for module in models for config in _configs(module.config)}
    return [*models, *configs.values()]


def _configs(config: object) -> Iterator[object]:
    yield config
    inner = vars(config).get("text_config")
    if inner is not None:
        yield from _configs(inner)
