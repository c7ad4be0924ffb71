"""Mixtura: sparse Mixture-of-Experts models on PyTorch. Names are imported at their first use."""

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
    """The attribute `name`, imported now; torch is imported only with a name that needs it."""
    if name == "__version__":
        from importlib.metadata import version

        value = version("mixtura")
    else:
        value = _imported(name)
    # The next use finds the name among the globals, and __getattr__ is not called.
    globals()[name] = value
    return value


# Hidden from type checkers: with a __getattr__ they would accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = _attribute


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
