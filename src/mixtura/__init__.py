"""Mixtura: sparse Mixture-of-Experts models on PyTorch.

Each public name is imported at its first use, so that `import mixtura` does not import torch.
"""

from typing import TYPE_CHECKING, Any

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.engine.model import Model, load
    from mixtura.models import Decoder, DecoderConfig
    from mixtura.moe import MoE, MoEConfig, MoEOutput, Routing

    __version__: str

__all__ = [
    "Decoder",
    "DecoderConfig",
    "MoE",
    "MoEConfig",
    "MoEOutput",
    "Model",
    "Routing",
    "__version__",
    "load",
]

_HOMES = {
    "Decoder": "mixtura.models",
    "DecoderConfig": "mixtura.models",
    "MoE": "mixtura.moe",
    "MoEConfig": "mixtura.moe",
    "MoEOutput": "mixtura.moe",
    "Model": "mixtura.engine.model",
    "Routing": "mixtura.moe",
    "load": "mixtura.engine.model",
}

_imported = at_first_use(__name__, _HOMES)


def _attribute(name: str) -> Any:
    """Import the public name `name`. Only `__version__` needs no other module of Mixtura."""
    if name == "__version__":
        from importlib.metadata import version

        value = version("mixtura")
    else:
        value = _imported(name)
    # As a global, the name is found at its next use without a call of __getattr__.
    globals()[name] = value
    return value


# __getattr__ is hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = _attribute


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
