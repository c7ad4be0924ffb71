"""Another rank beside this process, by the sums that it brings about."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class OtherRank:
    """`summed` is a tensor of this rank plus the other's."""

    summed: Callable[[Tensor], Tensor]
    index: int = 0
    count: int = 2

    def sum(self, of: Any) -> Any:
        return self.summed(of)

    def barrier(self) -> None:
        raise AssertionError("a layer waits for no one")
