"""What a quantised format stores for one linear module, and how the module's weight is computed.

N rows and K columns of a weight.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixtura.checkpoints.source import Source, StoredTensor
from mixtura.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mixtura.kernels.packed.groups import Groups

Shape = tuple[int, ...]
PLAIN_SCALES = ("F32", "BF16", "F16")
"""the dtypes of scales that are not quantised themselves"""


@dataclass(frozen=True, slots=True)
class Module:
    """The stored tensors of one quantised module, by their names within the module."""

    name: str
    parts: Mapping[str, StoredTensor]
    source: Source

    def read(self, part: str) -> "Tensor":
        return self.source.read(self.parts[part].name)

    def check(self, part: str, dtypes: Collection[str], *shapes: Shape) -> None:
        """Raise CheckpointError if a part has none of the given dtypes or none of the shapes."""
        found = self.parts[part]
        if found.dtype not in dtypes or found.shape not in shapes:
            raise CheckpointError(
                f"{found.file}: {found.name} is {found.dtype} of shape {found.shape} where "
                f"its format has {' or '.join(dtypes)} of {' or '.join(map(str, shapes))}; fetch "
                "the folder again, or correct quantization_config"
            )

    def matrix(self, part: str, dtypes: Collection[str]) -> tuple[int, int]:
        """Return a part's shape. Raises CheckpointError if it is no matrix of these dtypes."""
        found = self.parts[part]
        if found.dtype not in dtypes or len(found.shape) != 2 or 0 in found.shape:
            raise CheckpointError(
                f"{found.file}: {found.name} is {found.dtype} of shape {found.shape} where "
                f"its format has a matrix of {' or '.join(dtypes)}"
            )
        return found.shape[0], found.shape[1]

    def damaged(self, part: str, problem: str) -> CheckpointError:
        found = self.parts[part]
        return CheckpointError(f"{found.file}: {found.name} {problem}; the file is damaged")


class Layout(ABC):
    """A format: the parts of a quantised module, and the weight that they stand for."""

    weight: str
    """the name of the part that holds the quantised numbers"""
    dtypes: Collection[str]
    """the dtypes of the part `weight`; a module is quantised if this part has one of them"""
    needed: tuple[str, ...]
    """further parts that every quantised module has"""
    optional: tuple[str, ...] = ()

    def holds(self, part: str, tensor: StoredTensor) -> bool:
        """Whether a module's part holds quantised numbers in this format."""
        return part == self.weight and tensor.dtype in self.dtypes

    @abstractmethod
    def title(self, module: Module) -> str:
        """The name of the format, with bits and groups, such as INT4_G128."""

    @abstractmethod
    def shape(self, module: Module) -> tuple[int, int]:
        """Return (N, K) of the weight. Raises CheckpointError if the parts' shapes do not match."""

    @abstractmethod
    def plain(self, module: Module, dtype: "torch.dtype") -> "Tensor":
        """Compute weight_NK in fp32, and round it once to `dtype`."""

    def groups(self, module: Module) -> "Groups | None":
        """Return the exact weight as groups of 32 with fp16 scales; None if they cannot hold it."""
        return None


def group_count(module: Module, part: str, columns: int, group: int | None) -> int:
    """Return the number of groups of a row; with `group` None the row is one group.

    Raises CheckpointError if `columns` is not a multiple of `group`.
    """
    if group is None:
        return 1
    if columns % group:
        stored = module.parts[part]
        raise CheckpointError(
            f"{stored.file}: {stored.name} has rows of {columns} numbers, which groups of {group} "
            "do not fill; correct group_size in quantization_config"
        )
    return columns // group
