"""The choosing bias of transformers' models, which is added to scores only to choose experts.

E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.hf_models.routers import FoundRouter
from mixtura.moe.bias import bias_step

# The names of choosing biases in models. Biases that also change combine weights have other names.
NAMES = ("e_score_correction_bias", "expert_bias")


@dataclass(frozen=True, slots=True)
class ChoosingBias:
    """The module that holds a router's bias, and the bias's name in this module.

    The tensor is looked up at each use, since `Module.to` may replace it.
    """

    holder: nn.Module
    name: str

    @property
    def value(self) -> Tensor:
        bias_E = getattr(self.holder, self.name)
        assert isinstance(bias_E, Tensor)
        return bias_E

    def step(self, load_E: Tensor, rate: float) -> None:
        """Raise each bias by `rate` if the expert's load is below the mean; lower it if above."""
        with torch.no_grad():
            bias_E = self.value
            bias_E.copy_(bias_step(bias_E.flatten(), load_E, rate).view_as(bias_E))


def find_bias(modules: Mapping[str, nn.Module], router: FoundRouter) -> ChoosingBias:
    """Find the bias of a router, in the router or in the block around it.

    Raises ConfigError for a router without a bias, or for a dtype in which small steps vanish.
    """
    places = list(router.module.modules())
    outer = router.name
    while outer := outer.rpartition(".")[0]:
        if isinstance(modules[outer], nn.ModuleList):
            break
        places.append(modules[outer])
    for place in places:
        for name in NAMES:
            if name in {**place._parameters, **place._buffers}:
                bias = ChoosingBias(place, name)
                _check(router, bias.value)
                return bias
    raise ConfigError(
        f"layer {router.layer}: router {router.name} has no bias that chooses "
        f"({' or '.join(NAMES)}), and nothing to move; set bias_rate=0, and balance above 0"
    )


def _check(router: FoundRouter, bias_E: Tensor) -> None:
    if bias_E.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"layer {router.layer}: the bias of router {router.name} is in {bias_E.dtype}, where "
            "steps of 0.001 vanish; keep it in torch.float32"
        )
