"""A decoder's weights under our names: what every reader returns and every writer takes.

E experts; of any matrix N rows and K columns.
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
    """The weights of one model; each is read when a method returns it.

    `expert` selects one expert's part of a stack: index `expert` of the first dim.
    """

    path: Path
    """the file or folder, for error messages"""
    config: DecoderConfig

    @property
    def check(self) -> Check:
        """A check of all weights by their digests, which a writer begins and finishes."""
        return Check()

    @cached_property
    def blueprint(self) -> Decoder:
        """The decoder, without weights."""
        with without_weights():
            return self.config.build()

    @cached_property
    def like(self) -> Mapping[str, Tensor]:
        """Every tensor of the model by name, on the device "meta"."""
        return self.blueprint.state_dict(keep_vars=True)

    @abstractmethod
    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """One tensor, in the dtype `dtype_of`; a view of the file where possible."""

    @abstractmethod
    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that `tensor` will have, before it is read."""

    def stored_as(self, name: str) -> str:
        """The stored format of a tensor, such as "BF16" or "Q4_0"."""
        return spelt(self.dtype_of(name))

    def groups(self, name: str, expert: int | None = None) -> Groups | None:
        """The stored groups of 32 of a matrix's rows, or of a stack of matrices.

        None for a tensor that is not stored in groups.
        """
        return None

    def stored_bits(self, names: Iterable[str]) -> Bits:
        """The fewest bits of groups that keep the stored precision of all these, at most 8."""
        return 8

    def matrix(self, name: str, bits: Bits, expert: int | None = None) -> Groups:
        """A matrix in groups, for packing; each row is padded with zeros to whole groups.

        Stored groups of at most `bits` are kept exactly; all else is quantised. Raises ConfigError,
        by name, for what cannot be quantised.
        """
        w_NK = self.tensor(name, expert)
        padded_NK = F.pad(w_NK, (0, -w_NK.shape[-1] % GROUP))
        named = f"{self.path}: {name}"
        return quantise(padded_NK, bits, named if expert is None else f"{named}[{expert}]")

    def release(self) -> None:  # noqa: B027, as most keep nothing
        """Free what reading the last tensor has kept for the next."""

    def remarks(self) -> Iterator[str]:
        """Lines for the user about the matrices read so far, such as which were rounded twice."""
        return iter(())

    def in_memory(self) -> "Weights":
        """Plain tensors, put together once; `self` where tensors are cheap to read."""
        return self


class DecoderWeights(Weights):
    """The weights of a decoder in memory: a run's, or a loaded model's."""

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
