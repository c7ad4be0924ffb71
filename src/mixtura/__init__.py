"""Mixtura: sparse Mixture-of-Experts models on PyTorch. Names are imported when first used."""

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

_of_homes = at_first_use(__name__, _HOMES)


def _first_use(name: str) -> Any:
    """Import what `name` stands for. Torch stays out until a name that needs it is used."""
    if name == "__version__":
        from importlib.metadata import version

        value = version("mixtura")
    else:
        value = _of_homes(name)
    # Kept, so that the next use does not come here.
    globals()[name] = value
    return value


# Hidden from type checkers, which would take any misspelt name for one that exists.
if not TYPE_CHECKING:
    __getattr__ = _first_use


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
