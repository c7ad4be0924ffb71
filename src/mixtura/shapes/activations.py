"""The names of activations, and which of them are gated.

The functions of the activations are in `mixtura.kernels.activation`.
"""

from typing import Annotated

from pydantic import AfterValidator

from mixtura.registry import Registry

ACTIVATIONS: Registry[bool] = Registry("activation", "mixtura.activations")
"""maps a name to whether the activation is gated; a gated FFN has a gate and an up matrix"""
OWN = ("swiglu", "swiglu_clamped", "geglu", "geglu_tanh", "gelu", "relu")
"""the activations that Mixtura itself defines"""
for _name in OWN:
    ACTIVATIONS.add(_name, _name.startswith(("swiglu", "geglu")))


def is_gated(activation: str) -> bool:
    """Whether an activation is gated. Raises ValueError for an unknown name."""
    return ACTIVATIONS.get(activation)


def _known(name: str) -> str:
    ACTIVATIONS.get(name)
    return name


Activation = Annotated[str, AfterValidator(_known)]
