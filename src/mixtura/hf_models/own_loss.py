"""Disables the router losses that models of transformers add to their own loss."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

# The attributes that hold the weights of router losses, in models and in configs.
COEFFICIENTS = ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef")


@contextmanager
def own_losses_disabled(model: nn.Module) -> Iterator[None]:
    """Set the weights of the model's own router losses to 0 in the block.

    The weights are restored at the end of the block, so that a config that is saved later has the
    user's weights.
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
    """The objects that may hold weights of router losses: models within `model`, and configs."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs = {id(config): config for module in models for config in _configs(module.config)}
    return [*models, *configs.values()]


def _configs(config: object) -> Iterator[object]:
    yield config
    inner = vars(config).get("text_config")
    if inner is not None:
        yield from _configs(inner)
