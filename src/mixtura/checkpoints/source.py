"""Where a model's weights come from: a config and named tensors in Hugging Face's terms."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtura.integrity import Check

if TYPE_CHECKING:
    # Torch is imported only to read tensors: inspection starts sooner without it.
    import torch
    from torch import Tensor

    from mixtura.kernels.packed.groups import Bits, Groups

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "BOOL": "bool",
}
_SPELT = {name: spelt for spelt, name in _DTYPES.items()}


def spelt(dtype: "torch.dtype") -> str:
    """The dtype's name in safetensors."""
    return _SPELT[str(dtype).removeprefix("torch.")]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's entry in its file, read before the tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """as safetensors (BF16, F32, F8_E4M3) or GGUF (Q4_1, Q8_0) spell it"""
    file: Path
    bytes: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes begin in a file."""

    file: Path
    offset: int


class Source(ABC):
    """A checkpoint open for reading, of any format."""

    path: Path
    config: Mapping[str, Any]
    """in the keys of config.json"""
    tensors: Mapping[str, StoredTensor]
    """all tensors by their names in the family's Hugging Face layout"""

    @abstractmethod
    def read(self, name: str) -> "Tensor":
        """One tensor, in the dtype that it is computed in; a view of the file where possible."""

    def dtype_of(self, name: str) -> "torch.dtype":
        """The dtype that `read` will return; fp32 for a format that has to be unpacked."""
        import torch

        return getattr(torch, _DTYPES.get(self.tensors[name].dtype, "float32"))

    def own_check(self, roles: Mapping[str, str]) -> Check | None:
        """A check of all tensors by digests within the file; None where it has none."""
        return None

    def place_of(self, name: str) -> Place | None:
        """Where the bytes that `read` returns lie in a file; None where no file holds them."""
        return None

    def stored_bits(self, name: str) -> "Bits":
        """The fewest bits of groups that keep the stored precision, at most 8."""
        return 8

    def groups(self, name: str) -> "Groups | None":
        """The stored numbers that `read` would unpack: rows [N, K] in groups of 32, fp16 scales.

        None where the format has no groups, or where a value or a scale would not be kept exactly.
        """
        return None
