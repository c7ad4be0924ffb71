"""The names of activations, and which are gated; their functions are `kernels.activation`'s."""

from typing import Annotated

from pydantic import AfterValidator

from mixtura.registry import Registry

ACTIVATIONS: Registry[bool] = Registry("activation", "mixtura.activations")
"""whether an FFN has two matrices in, gate and up, by name"""
OWN = ("swiglu", "swiglu_clamped", "geglu", "geglu_tanh", "gelu", "relu")
"""Mixtura's own"""
for _name in OWN:
    ACTIVATIONS.add(_name, _name.startswith(("swiglu", "geglu")))


def is_gated(activation: str) -> bool:
    """Raises ValueError for an unknown one."""
    return ACTIVATIONS.get(activation)


def _known(name: str) -> str:
    ACTIVATIONS.get(name)
    return name


Activation = Annotated[str, AfterValidator(_known)]
