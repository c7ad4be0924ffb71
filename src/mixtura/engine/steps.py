"""One step of a decoder: rows of any mix of sequences through all its layers.

R rows, N rows whose logits are asked for, K experts per token, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mixtura.kernels.phase import Phase


@dataclass(frozen=True, slots=True)
class Rows:
    """New tokens, flattened: one of each sequence in decode, several of some otherwise.

    A sequence's rows come in the order of their positions. All int64.
    """

    token_R: Tensor
    slot_R: Tensor
    position_R: Tensor
    angle_R: Tensor
    """the row of `AngleTables` that turns it: its position, as a rule"""

    def __len__(self) -> int:
        return len(self.token_R)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one MoE layer's router chose for the rows of a step, in the router's order."""

    layer: int
    num_experts: int
    expert_RK: Tensor
    """int64; `num_experts`: none"""
    weight_RK: Tensor
    """combine weights, fp32"""


@dataclass(slots=True)
class Routes:
    """Asks a step for its routers' choices, which fill `chosen`; the other fields have a say in
    them, and are for the native program alone.
    """

    limit_R: Tensor | None = None
    """The most experts of each row, int64, 1 or more. A row gets what a router of so many gives it,
    and never more than top_k."""
    between: Callable[[Chosen], None] | None = None
    """Called for each MoE layer between routing and experts. It may write into the tensors, and
    must start no step and no kernel; what it raises ends the step."""
    chosen: tuple[Chosen, ...] = ()


class Steps(Protocol):
    """What a step is computed by: torch's modules one by one, or one native program."""

    def __call__(
        self, rows: Rows, phase: Phase, asked_N: Tensor, routes: Routes | None = None
    ) -> Tensor:
        """logits_NV, fp32, of the rows numbered `asked_N`; keys and values of all rows are kept."""
        ...
