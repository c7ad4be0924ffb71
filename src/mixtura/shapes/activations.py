"""The names of activations, and which are gated; `kernels.activation` has their functions."""

from typing import Annotated

from pydantic import AfterValidator

from mixtura.registry import Registry

ACTIVATIONS: Registry[bool] = Registry("activation", "mixtura.activations")
"""by name, whether an FFN has two input matrices, gate and up"""
OWN = ("swiglu", "swiglu_clamped", "geglu", "geglu_tanh", "gelu", "relu")
"""the activations of Mixtura itself"""
for _name in OWN:
    ACTIVATIONS.add(_name, _name.startswith(("swiglu", "geglu")))


def is_gated(activation: str) -> bool:
    """Raises ValueError for an unknown activation."""
    return ACTIVATIONS.get(activation)


def _known(name: str) -> str:
    ACTIVATIONS.get(name)
    return name


Activation = Annotated[str, AfterValidator(_known)]
