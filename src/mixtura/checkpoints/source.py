"""`Source`: a checkpoint of any file format, open for reading, with a config and named tensors.

The config's keys and the tensors' names are those of Hugging Face.
"""

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
    """The name of a dtype in safetensors, such as BF16."""
    return _SPELT[str(dtype).removeprefix("torch.")]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The name, shape, format and size of a tensor, from the header of its file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """the name of the format in safetensors (BF16, F32) or in GGUF (Q4_1, Q8_0)

    A quantised weight of a Hugging Face folder has the name of its format, such as INT4_G128.
    """
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
    """A checkpoint of any file format, open for reading."""

    path: Path
    config: Mapping[str, Any]
    """the content of config.json, or its equivalent in another file format"""
    tensors: Mapping[str, StoredTensor]
    """all tensors, by the names that Hugging Face gives them"""
    quantisation: str | None = None
    """the method by which the weights of a Hugging Face folder are quantised; None if plain"""

    @abstractmethod
    def read(self, name: str) -> "Tensor":
        """Read a tensor in the dtype `dtype_of(name)`, as a view of the file if possible."""

    def dtype_of(self, name: str) -> "torch.dtype":
        """The dtype of the tensor that `read` returns; fp32 for a format that `read` unpacks."""
        import torch

        return getattr(torch, _DTYPES.get(self.tensors[name].dtype, "float32"))

    def without_effect(self, name: str) -> str | None:
        """A description of a tensor that a model without a place for it may leave out, or None."""
        return None

    def own_check(self, roles: Mapping[str, str]) -> Check | None:
        """A check of all tensors against the source's own digests; None if it has no digests."""
        return None

    def place_of(self, name: str) -> Place | None:
        """The place of the bytes that `read` returns; None if no file holds exactly these bytes."""
        return None

    def stored_bits(self, name: str) -> "Bits":
        """The fewest bits, 4 or 8, with which quantised groups keep a tensor's stored precision.

        The result for a tensor that is not quantised is 8.
        """
        return 8

    def groups(self, name: str) -> "Groups | None":
        """Read a quantised tensor without unpacking it: integers, and a scale for each group of 32.

        All dims but the last are flattened to rows, and scales are fp16. Returns None if the format
        has no such groups, or if an integer or a scale could not be kept exactly.
        """
        return None

    def requantised(self, name: str, bits: "Bits") -> "Groups | None":
        """Quantise a stored tensor again, without unpacking the whole tensor in memory.

        The groups equal those of the tensor that `read` returns. Returns None if the source cannot
        do this for the tensor, or if a weight cannot be quantised.
        """
        return None
