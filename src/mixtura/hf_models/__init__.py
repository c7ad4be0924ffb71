"""Hugging Face transformers: our experts in its models, and right balancing in its training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixtura.errors import ConfigError
from mixtura.hf_models.backend import register

if TYPE_CHECKING:
    from mixtura.hf_models.balancing import Balancing, attach_balancing
    from mixtura.hf_models.observe import Observation, observe_routing
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
    "Observation": "observe",
    "attach_balancing": "balancing",
    "observe_routing": "observe",
    "pack_experts": "packed_experts",
}


def _first_use(name: str) -> Any:
    """Import what `name` stands for; transformers stays out until then."""
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


# Hidden from type checkers, which would take any misspelt name for one that exists.
if not TYPE_CHECKING:
    __getattr__ = _first_use
