"""Gates keep their precision, because a rounded logit may choose another expert."""

import torch
from torch import nn

from mixtura.moe.routers import Router


def gate_names(model: nn.Module) -> frozenset[str]:
    """The names of the routers' parameters, which a user's `dtype` does not round."""
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, Router)
        for own, _ in module.named_parameters()
    )


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters to `dtype`.

    A gate gets the promoted type of its own dtype and `dtype`, so that it is never rounded.
    """
    gates = gate_names(model)
    for name, parameter in model.named_parameters():
        own = torch.promote_types(parameter.dtype, dtype) if name in gates else dtype
        parameter.data = parameter.data.to(own)
