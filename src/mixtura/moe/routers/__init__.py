"""Every router behind one interface. A new one: its class and config, and one line in the union."""

from typing import Annotated

from pydantic import Field

from mixtura.moe.routers.sigmoid import SigmoidTopK, SigmoidTopKConfig
from mixtura.moe.routers.softmax import (
    SoftmaxTopK,
    SoftmaxTopKConfig,
    Switch,
    SwitchConfig,
    TopKSoftmax,
    TopKSoftmaxConfig,
)
from mixtura.moe.routers.token_choice import Scores, TokenChoiceRouter

RouterConfig = Annotated[
    SoftmaxTopKConfig | TopKSoftmaxConfig | SwitchConfig | SigmoidTopKConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "RouterConfig",
    "Scores",
    "SigmoidTopK",
    "SigmoidTopKConfig",
    "SoftmaxTopK",
    "SoftmaxTopKConfig",
    "Switch",
    "SwitchConfig",
    "TokenChoiceRouter",
    "TopKSoftmax",
    "TopKSoftmaxConfig",
]
