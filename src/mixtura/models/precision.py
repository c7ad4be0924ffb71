"""Gates keep their precision: a rounded logit may choose another expert."""

import torch
from torch import nn

from mixtura.moe.routers import Router


def gate_names(model: nn.Module) -> frozenset[str]:
    """The parameters of its routers, which no dtype that a user names rounds."""
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, Router)
        for own, _ in module.named_parameters()
    )


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to `dtype`, gates to the narrowest one that also holds what they are in."""
    gates = gate_names(model)
    for name, parameter in model.named_parameters():
        own = torch.promote_types(parameter.dtype, dtype) if name in gates else dtype
        parameter.data = parameter.data.to(own)
