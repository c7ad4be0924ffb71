"""One step of a decoder: rows of any mix of sequences through all its layers.

R rows, N rows whose logits are asked for, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mixtura.kernels.phase import Phase


@dataclass(frozen=True, slots=True)
class Rows:
    """New tokens, flattened: of one sequence each when decoding, chunks of some in prefill.

    A sequence's rows come in the order of their positions. All int64.
    """

    token_R: Tensor
    slot_R: Tensor
    position_R: Tensor
    angle_R: Tensor
    """the row of `AngleTables` that turns it: its position, as a rule"""

    def __len__(self) -> int:
        return len(self.token_R)


class Steps(Protocol):
    """What a step is computed by: torch's modules one by one, or one native program."""

    def __call__(self, rows: Rows, phase: Phase, asked_N: Tensor) -> Tensor:
        """logits_NV, fp32, of the rows numbered `asked_N`; keys and values of all rows are kept."""
        ...
