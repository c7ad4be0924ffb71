"""The routers that the native program supports: one gate matrix, scores, and combine weights.

E experts, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from mixtura.moe.routers import (
    Dbrx,
    DeepSeekV2,
    DeepSeekV3,
    LinearRouter,
    Router,
    SigmoidTopK,
    SoftmaxTopK,
    Switch,
    TopKSoftmax,
)

# The places in these tuples are the enums' values in native/decoder/gate.h.
Score = Literal["logit", "softmax", "sigmoid"]
Weigh = Literal["score", "softmax", "share", "norm"]
_SCORES: tuple[Score, ...] = ("logit", "softmax", "sigmoid")
_WEIGHS: tuple[Weigh, ...] = ("score", "softmax", "share", "norm")
_KEPT = {torch.float32: 0, torch.bfloat16: 1}


@dataclass(frozen=True, slots=True)
class Gate:
    """A router, in the terms of native/decoder/gate.h, which explains the fields."""

    router: LinearRouter
    score: Score
    weigh: Weigh
    norm: float = 1.0
    scale: float = 1.0
    group_top: int = 1

    def of(
        self,
        module: ModuleType,
        address: Callable[[Tensor], int],
        of_floats: Callable[[Tensor | None], int],
    ) -> Any:
        """The gate as the compiled module takes it.

        `address` gives the address of a tensor, `of_floats` that of a tensor in fp32.
        """
        weight_ED = self.router.weight
        if weight_ED.dtype not in _KEPT:
            weight_ED = weight_ED.float()
        return module.Gate(
            address(weight_ED),
            _KEPT[weight_ED.dtype],
            weight_ED.shape[1],
            of_floats(self.router.gate_bias),
            of_floats(self.router.bias),
            self.router.num_experts,
            self.router.top_k,
            _SCORES.index(self.score),
            _WEIGHS.index(self.weigh),
            self.norm,
            self.scale,
            self.router.num_groups,
            self.router.groups_kept,
            self.group_top,
        )


def gate_of(router: Router) -> Gate | None:
    """The router as a `Gate`; None for a router that the program does not support."""
    # Types are compared exactly, since a subclass may choose experts in another way.
    kind = type(router)
    if isinstance(router, SoftmaxTopK) and kind in (SoftmaxTopK, DeepSeekV2):
        weigh: Weigh = "softmax" if router.config.renormalise else "score"
        scale = router.scale if isinstance(router, DeepSeekV2) else 1.0
        return Gate(router, "softmax", weigh, scale=scale)
    if isinstance(router, SigmoidTopK) and kind in (SigmoidTopK, DeepSeekV3):
        weigh = "share" if router.config.renormalise else "score"
        top = router.group_top if isinstance(router, DeepSeekV3) else 1
        return Gate(router, "sigmoid", weigh, scale=router.config.scale, group_top=top)
    if isinstance(router, TopKSoftmax) and kind is TopKSoftmax:
        return Gate(router, "logit", "softmax")
    if isinstance(router, Switch) and kind is Switch:
        return Gate(router, "softmax", "score")
    if isinstance(router, Dbrx) and kind is Dbrx:
        norm = router.config.norm
        if norm is None:
            return Gate(router, "softmax", "score")
        return Gate(router, "softmax", "norm", norm=norm)
    return None
