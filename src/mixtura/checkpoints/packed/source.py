"""A packed model as a Source: what a checkpoint of one of its families would hold.

E experts, H rows of w_in, D width, F expert width; of any matrix N rows and K columns.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from mixtura.checkpoints.filling import filled, filled_groups
from mixtura.checkpoints.hf.saving import hf_config
from mixtura.checkpoints.source import Source, StoredTensor, spelt
from mixtura.integrity import Check
from mixtura.kernels.packed.groups import Groups, dequantise
from mixtura.kernels.packed.tiles import untile, untile_expert
from mixtura.models.packed_decoder import packed_blueprint
from mixtura.packed.file import PackedFile
from mixtura.packed.header import PLAIN, Entry
from mixtura.shapes.families import Family, Piece
from mixtura.shapes.storage.numbers import GROUP, group_bytes, up
from mixtura.shapes.storage.packed import FFNs

_MATRICES = ("w_in", "w_out")


@dataclass(frozen=True, slots=True)
class _Stored:
    """One tensor of the checkpoint."""

    entry: Entry
    matrix: str
    """of FFNs: w_in or w_out"""
    expert: int | None
    """of FFNs: whose alone it is; None: all experts' together"""
    pieces: tuple[Piece, ...]
    """of that expert's matrix, or of the whole tensor of ours"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of ours, as the pieces see it."""
        if self.entry.kind != "experts":
            return self.entry.shape
        experts, hidden, width, expert_width = self.entry.shape
        own = (hidden, width) if self.matrix == "w_in" else (width, expert_width)
        stacked = self.expert is None and ".experts" in self.entry.name
        return (experts, *own) if stacked else own


class PackedSource(Source):
    """Matrices are untiled when they are asked for, one expert's at a time.

    Raises ConfigError where the family cannot say what this decoder computes.
    """

    def __init__(self, file: PackedFile, family: Family) -> None:
        config = packed_blueprint(file).config
        self.path, self.config = file.path.parent, hf_config(config, family)
        self.file = file
        pieces: dict[str, list[Piece]] = defaultdict(list)
        for piece in family.pieces(config):
            pieces[piece.stored].append(piece)
        self._held = {name: self._of(own) for name, own in pieces.items()}
        self.tensors: Mapping[str, StoredTensor] = {
            name: self._described(name, one) for name, one in self._held.items()
        }

    def own_check(self, roles: Mapping[str, str]) -> Check:
        return self.file.check(roles)

    def read(self, name: str) -> Tensor:
        """In fp32 where it is packed; a copy in any case, since the file cannot be written to."""
        one = self._held[name]
        if one.entry.kind == "plain":
            return filled(one.pieces, lambda _: self.file.read(one.entry.name)).clone()

        def numbers(_: Piece) -> Tensor:
            columns = one.shape[-1]
            return dequantise(self._groups(one))[:, :columns].reshape(one.shape)

        return filled(one.pieces, numbers)

    def groups(self, name: str) -> Groups | None:
        one = self._held[name]
        if one.entry.kind == "plain" or one.shape[-1] % GROUP:
            return None
        return filled_groups(one.pieces, lambda _: self._groups(one), lambda _: one.shape[:-1])

    def _of(self, pieces: list[Piece]) -> _Stored:
        ours = pieces[0].ours
        module, _, leaf = ours.rpartition(".")
        if leaf not in _MATRICES:
            return _Stored(self.file.entries[ours], "", None, tuple(pieces))
        entry, at = self.file.entries[module], pieces[0].at
        if not (at and isinstance(at[0], int)):
            return _Stored(entry, leaf, None, tuple(pieces))
        own = tuple(replace(piece, at=piece.at[1:]) for piece in pieces)
        return _Stored(entry, leaf, at[0], own)

    def _groups(self, one: _Stored) -> Groups:
        """Of ours, its rows one after another, each padded to whole groups."""
        tiles, entry = self.file.read(one.entry.name), one.entry
        if entry.kind == "tiles":
            rows, columns = entry.shape
            return untile(tiles, rows, up(columns, GROUP), entry.bits)
        ffns = FFNs(*entry.shape)
        chosen = tiles if one.expert is None else tiles[one.expert : one.expert + 1]
        each = [
            untile_expert(own, ffns.width, ffns.expert_width, entry.bits, ffns.gated)
            for own in chosen
        ]
        parts = [found.w_in if one.matrix == "w_in" else found.w_out for found in each]
        if len(parts) == 1:
            return parts[0]
        q = torch.cat([part.q_NK for part in parts])
        return Groups(q, torch.cat([part.scale_NG for part in parts]), entry.bits)

    def _described(self, name: str, one: _Stored) -> StoredTensor:
        shape, entry = one.pieces[0].shape, one.entry
        if entry.kind == "plain":
            dtype = spelt(PLAIN[entry.format])
            return StoredTensor(name, shape, dtype, self.file.path, entry.bytes)
        # As GGUF calls such groups.
        size = prod(shape) * group_bytes(entry.bits) // GROUP
        return StoredTensor(name, shape, f"Q{entry.bits}_0", self.file.path, size)
