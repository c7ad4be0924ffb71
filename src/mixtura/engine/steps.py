"""One step of a decoder: rows of any mix of sequences go through all layers.

R rows, N logit rows, D width, K experts per token, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mixtura.kernels.phase import Phase


@dataclass(frozen=True, slots=True)
class StepRows:
    """The new tokens of a step, flattened, without padding; all tensors are int64.

    In decode each sequence has one row. In prefill and verify a sequence may have several rows, in
    the order of their positions.
    """

    token_R: Tensor
    slot_R: Tensor
    position_R: Tensor
    angle_R: Tensor
    """rows of `RopeTables`: the positions, unless a text is long under LongRoPE"""

    def __len__(self) -> int:
        return len(self.token_R)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one MoE layer's router chose for the rows of a step, in the router's order."""

    layer: int
    num_experts: int
    expert_RK: Tensor
    """int64; `num_experts` means no expert"""
    weight_RK: Tensor
    """combine weights, fp32"""


@dataclass(slots=True)
class Routes:
    """A step that is given a `Routes` stores its routers' choices in `chosen`.

    `limit_R` and `between` change the choices. Only the native program supports these two.
    """

    limit_R: Tensor | None = None
    """The most experts of each row, int64, 1 or more. A row is routed as by a router with this
    top_k, and never has more experts than the router's own top_k."""
    between: Callable[[Chosen], None] | None = None
    """Called for each MoE layer between routing and experts. It may write into the tensors of its
    argument, and must start no step and no kernel. An exception that it raises ends the step."""
    chosen: tuple[Chosen, ...] = ()


class Steps(Protocol):
    """Computes steps, through torch's modules one by one or in one native program."""

    def __call__(
        self, rows: StepRows, phase: Phase, logit_row_N: Tensor, routes: Routes | None = None
    ) -> Tensor:
        """logits_NV, fp32, of the rows with the numbers `logit_row_N`.

        The cache gets the keys and values of all rows.
        """
        ...
