"""Mixtura's experts and balancing for models of Hugging Face transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixtura.errors import ConfigError
from mixtura.hf_models.backend import register

if TYPE_CHECKING:
    from mixtura.hf_models.balancing import Balancing, attach_balancing
    from mixtura.hf_models.observation import Observation, observe_routing
    from mixtura.hf_models.packed_experts import pack_experts

__all__ = [
    "Balancing",
    "Observation",
    "attach_balancing",
    "observe_routing",
    "pack_experts",
    "register",
]

_HOMES = {
    "Balancing": "balancing",
    "Observation": "observation",
    "attach_balancing": "balancing",
    "observe_routing": "observation",
    "pack_experts": "packed_experts",
}


def _attribute(name: str) -> Any:
    """Import the attribute `name`. Raises ConfigError if transformers is not installed."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mixtura.hf_models' has no attribute {name!r}")
    try:
        home = import_module(f"mixtura.hf_models.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ConfigError(
            f"{name} needs the package 'transformers': pip install 'mixtura[hf]'"
        ) from None
    return getattr(home, name)


# With a visible `__getattr__`, type checkers would accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = _attribute
