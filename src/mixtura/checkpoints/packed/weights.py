"""Reads the weights of a packed folder, Mixtura's quantised format for CPUs.

Matrices are stored as tiles, in the order in which the CPU kernels read them. A group is 32 weights
of a row that share a scale. N rows and K columns of a matrix, G = K/32 groups of a row.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.checkpoints.source import spelt
from mixtura.checkpoints.weights import Weights
from mixtura.integrity import Check
from mixtura.kernels.packed.groups import Groups, dequantise
from mixtura.kernels.packed.tiles import untile, untile_expert
from mixtura.models.packed_decoder import packed_blueprint
from mixtura.packed.file import PackedFile
from mixtura.packed.header import PLAIN, Entry
from mixtura.shapes.storage.numbers import GROUP, up
from mixtura.shapes.storage.packed import FFNs

_MATRICES = ("w_in", "w_out")


class _Place(NamedTuple):
    """The entry of the packed file that holds a tensor of the decoder."""

    entry: Entry
    matrix: str
    """`w_in` or `w_out` if the entry holds experts or a dense FFN; empty for any other entry"""


class PackedWeights(Weights):
    """The weights of a packed folder; a matrix is converted from tiles to rows when it is read."""

    def __init__(self, file: PackedFile) -> None:
        """Raises ConfigError or CheckpointError if the header and the tensors do not match."""
        self.file, self.path = file, file.path.parent
        self.config = packed_blueprint(file).config

    @cached_property
    def check(self) -> Check:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.file.check(self.config.roles())

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """Read a tensor; a packed tensor is converted to fp32.

        The result is a copy, because the mapped file is read-only.
        """
        place = self._place(name)
        if place.entry.kind == "plain":
            whole = self.file.read(name).clone()
            return whole if expert is None else whole[expert]
        shape = self.like[name].shape if expert is None else self.like[name].shape[1:]
        return dequantise(self._groups(place, expert))[:, : shape[-1]].reshape(shape)

    def dtype_of(self, name: str) -> torch.dtype:
        entry = self._place(name).entry
        return PLAIN[entry.format] if entry.kind == "plain" else torch.float32

    def stored_as(self, name: str) -> str:
        """The dtype's name in safetensors; for a packed tensor GGUF's name, Q4_0 or Q8_0."""
        entry = self._place(name).entry
        return spelt(PLAIN[entry.format]) if entry.kind == "plain" else f"Q{entry.bits}_0"

    def groups(self, name: str, expert: int | None = None) -> Groups | None:
        place = self._place(name)
        if place.entry.kind == "plain" or self.like[name].shape[-1] % GROUP:
            return None
        return self._groups(place, expert)

    def _place(self, name: str) -> _Place:
        module, _, leaf = name.rpartition(".")
        if leaf in _MATRICES:
            return _Place(self.file.entries[module], leaf)
        return _Place(self.file.entries[name], "")

    def _groups(self, place: _Place, expert: int | None) -> Groups:
        """Read the rows of one expert's matrix, or of all experts' matrices one after another.

        Each row is padded to a multiple of 32.
        """
        entry = place.entry
        tiles = self.file.read(entry.name)
        if entry.kind == "tiles":
            rows, columns = entry.shape
            return untile(tiles, rows, up(columns, GROUP), entry.bits)
        ffns = FFNs(*entry.shape)
        chosen = tiles if expert is None else tiles[expert : expert + 1]
        each = [
            untile_expert(own, ffns.width, ffns.expert_width, entry.bits, ffns.gated)
            for own in chosen
        ]
        parts = [found.w_in if place.matrix == "w_in" else found.w_out for found in each]
        if len(parts) == 1:
            return parts[0]
        q_NK = torch.cat([part.q_NK for part in parts])
        return Groups(q_NK, torch.cat([part.scale_NG for part in parts]), entry.bits)
