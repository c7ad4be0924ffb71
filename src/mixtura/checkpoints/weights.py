"""`Weights`: the interface through which writers of model files read a decoder's weights.

Tensors have the names of Mixtura's decoder. N rows and K columns of a matrix.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.checkpoints.source import spelt
from mixtura.integrity import Check
from mixtura.kernels.packed.groups import Groups, quantise
from mixtura.models import Decoder, DecoderConfig
from mixtura.models.blueprint import without_weights
from mixtura.shapes.storage.numbers import GROUP, Bits


class Weights(ABC):
    """The weights of one model; a tensor is read when a method returns it.

    `expert` selects one expert of a tensor that stacks experts: index `expert` of its first dim.
    """

    path: Path
    """the file or folder that error messages name"""
    config: DecoderConfig

    @property
    def check(self) -> Check:
        """The comparison of all weights with their digests; a writer has to begin and finish it."""
        return Check()

    @cached_property
    def blueprint(self) -> Decoder:
        """The decoder, with its parameters on the device meta."""
        with without_weights():
            return self.config.build()

    @cached_property
    def like(self) -> Mapping[str, Tensor]:
        """Every tensor of the model by name, on the device meta, and thus without values."""
        return self.blueprint.state_dict(keep_vars=True)

    @abstractmethod
    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """Read a tensor in the dtype `dtype_of(name)`, as a view of the file if possible."""

    @abstractmethod
    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of the tensor that `tensor` returns."""

    def stored_as(self, name: str) -> str:
        """The stored format of a tensor, such as "BF16" or "Q4_0"."""
        return spelt(self.dtype_of(name))

    def groups(self, name: str, expert: int | None = None) -> Groups | None:
        """Read a matrix, or a stack of matrices, as the quantised groups that are stored.

        A group is 32 weights of a row that share a scale. Returns None for a tensor that is not
        stored in groups.
        """
        return None

    def stored_bits(self, names: Iterable[str]) -> Bits:
        """The fewest bits, 4 or 8, that keep the stored precision of all tensors in `names`."""
        return 8

    def matrix(self, name: str, bits: Bits, expert: int | None = None) -> Groups:
        """Read a matrix as groups to be packed; each row is padded with zeros to a multiple of 32.

        A subclass may return stored groups of at most `bits` bits; all other weights are quantised.
        Raises ConfigError, naming the matrix, for weights that cannot be quantised.
        """
        w_NK = self.tensor(name, expert)
        padded_NK = F.pad(w_NK, (0, -w_NK.shape[-1] % GROUP))
        named = f"{self.path}: {name}"
        return quantise(padded_NK, bits, named if expert is None else f"{named}[{expert}]")

    def release(self) -> None:  # noqa: B027, as most subclasses keep nothing
        """Free memory that was kept between reads, such as an unpacked stack of experts."""

    def remarks(self) -> Iterator[str]:
        """Lines for the user about the matrices read so far, such as how many were requantised."""
        return iter(())

    def in_memory(self) -> "Weights":
        """Return the same weights, unpacked in memory; this is `self` if reading them is cheap."""
        return self


class DecoderWeights(Weights):
    """The weights of a decoder in memory, from a run or a loaded checkpoint."""

    def __init__(self, decoder: Decoder, path: Path, check: Check | None = None) -> None:
        self.path, self.config = path, decoder.config
        self._check = check
        held = {**dict(decoder.named_parameters()), **dict(decoder.named_buffers())}
        self._held = {name: tensor.detach() for name, tensor in held.items()}

    @property
    def check(self) -> Check:
        return self._check or Check()

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        return self._held[name] if expert is None else self._held[name][expert]

    def dtype_of(self, name: str) -> torch.dtype:
        return self._held[name].dtype
