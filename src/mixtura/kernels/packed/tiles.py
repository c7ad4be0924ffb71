"""The bytes of quantised weights in the order that kernels read; docs/packed.md shows this order.

A matrix is padded to whole units of 32 output channels and whole blocks of 64 inputs. A block has
first its scales and then its numbers. The numbers are in lines of 64 bytes; a line has one word of
4 bytes for each of the 16 channels of a tile.

N output channels, K inputs, U units, B blocks of a unit, T = 2 tiles of a block, C = 16 channels of
a tile, G = 2 groups of a channel in a block, L lines of a group (4 in 4 bits, 8 in 8 bits). D
width, F expert width, H rows of w_in: 2F if the activation is gated (F rows of W_gate, then F rows
of W_up), else F. R selected channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.native import InstructionSet, check_offered, native, number_of
from mixtura.kernels.packed.groups import GROUP, Bits, Groups
from mixtura.shapes.storage.numbers import up
from mixtura.shapes.storage.tiles import (
    BLOCK,
    BLOCK_SCALE_BYTES,
    TILE,
    UNIT,
    block_bytes,
    expert_bytes,
    rows_in,
    tiled_bytes,
    w_out_start,
)

# This offset is added to each number, because numbers are stored without a sign.
_OFFSET: dict[Bits, int] = {4: 8, 8: 128}


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """One FFN's quantised weights: w_in [H, D], and w_out [D, F rounded up to whole groups]."""

    w_in: Groups
    w_out: Groups


def tile(groups: Groups, gated: bool = False, kernels: InstructionSet = "auto") -> Tensor:
    """The tiles of a matrix as flat uint8, by the compiled kernels if there are any.

    If `gated`, the rows are [gate; up], and are put into the order of `interleave_gate_up`.
    """
    tiles = torch.empty(_bytes_of(groups, gated), dtype=torch.uint8)
    _tile_into(tiles, groups, gated, kernels)
    return tiles


def tile_naive(groups: Groups, gated: bool = False) -> Tensor:
    """The naive twin of `tile`."""
    q_NK, scale_NG, bits = groups.q_NK, groups.scale_NG, groups.bits
    if gated:
        q_NK, scale_NG = interleave_gate_up(q_NK), interleave_gate_up(scale_NG)
    n, k = q_NK.shape
    units, blocks, offset = up(n, UNIT) // UNIT, up(k, BLOCK) // BLOCK, _OFFSET[bits]
    rows, inputs = UNIT * units - n, BLOCK * blocks - k
    q_NK = F.pad(q_NK, (0, inputs, 0, rows))
    scale_NG = F.pad(scale_NG, (0, inputs // GROUP, 0, rows))
    word = (q_NK.view(torch.uint8) + offset).view(torch.int32)
    word_UTCBGL = word.view(units, 2, TILE, blocks, 2, GROUP // 4)
    if bits == 4:
        low, high = word_UTCBGL.unflatten(5, (4, 2)).unbind(6)
        word_UTCBGL = low | (high << 4)
    scale_UTCBG = scale_NG.view(units, 2, TILE, blocks, 2)
    tiles_UB = torch.empty(units, blocks, block_bytes(bits), dtype=torch.uint8)
    scales, quants = _parts(tiles_UB)
    scales.copy_(scale_UTCBG.permute(0, 3, 1, 4, 2))
    quants.copy_(word_UTCBGL.permute(0, 3, 4, 5, 1, 2))
    return tiles_UB.view(-1)


def untile(tiles: Tensor, n: int, k: int, bits: Bits) -> Groups:
    """The groups of a tiled matrix: the reverse of `tile`."""
    tiles_UB = _blocks(tiles, n, k, bits)
    scales, quants = _parts(tiles_UB)
    word_UTCBGL = quants.permute(0, 4, 5, 1, 2, 3)
    rows, inputs = UNIT * len(tiles_UB), up(k, BLOCK)
    q_NK = _numbers(word_UTCBGL, bits).view(rows, inputs)
    scale_NG = scales.permute(0, 2, 4, 1, 3).reshape(rows, inputs // GROUP)
    return Groups(q_NK[:n, :k].contiguous(), scale_NG[:n, : k // GROUP].contiguous(), bits)


def untile_rows(tiles: Tensor, row_R: Tensor, n: int, k: int, bits: Bits) -> Groups:
    """The groups of the output channels `row_R` of a tiled matrix, in this order.

    Other channels are not unpacked.
    """
    scales, quants = _parts(_blocks(tiles, n, k, bits))
    unit_R, tile_R, channel_R = row_R // UNIT, row_R % UNIT // TILE, row_R % TILE
    # If slices stand between the tensors of an index, torch puts the dim R of the tensors first.
    # The shapes are therefore (R, B, G, L) and (R, B, G).
    rows, inputs = len(row_R), up(k, BLOCK)
    q_RK = _numbers(quants[unit_R, :, :, :, tile_R, channel_R], bits).view(rows, inputs)
    scale_RG = scales[unit_R, :, tile_R, :, channel_R].reshape(rows, inputs // GROUP)
    return Groups(q_RK[:, :k].contiguous(), scale_RG[:, : k // GROUP].contiguous(), bits)


def interleave_gate_up(w_HD: Tensor) -> Tensor:
    """Reorder [gate; up]: rows 0..15 of gate, rows 0..15 of up, rows 16..31 of gate, and so on.

    Gate and up are padded with zeros to a multiple of 16 rows.
    """
    w_2FD = w_HD.unflatten(0, (2, -1))
    padded = F.pad(w_2FD, (0, 0, 0, -w_2FD.shape[1] % TILE))
    return padded.unflatten(1, (-1, TILE)).transpose(0, 1).flatten(0, 2)


def deinterleave_gate_up(w_HD: Tensor, expert_width: int) -> Tensor:
    """The reverse of `interleave_gate_up`, without the padding."""
    return (
        w_HD.unflatten(0, (-1, 2, TILE))
        .transpose(0, 1)
        .flatten(1, 2)[:, :expert_width]
        .flatten(0, 1)
    )


def tile_expert(w_in: Groups, w_out: Groups, gated: bool) -> Tensor:
    """One expert's bytes as flat uint8, from its w_in and w_out as in `ExpertGroups`."""
    bits, (hidden, width) = w_in.bits, w_in.shape
    expert_width = hidden // 2 if gated else hidden
    assert w_out.shape == (width, up(expert_width, GROUP)), "of one expert"
    start = w_out_start(width, expert_width, bits, gated)
    in_bytes, out_bytes = _bytes_of(w_in, gated), _bytes_of(w_out, False)
    own = torch.empty(expert_bytes(width, expert_width, bits, gated), dtype=torch.uint8)
    _tile_into(own[:in_bytes], w_in, gated)
    own[in_bytes:start].zero_()
    _tile_into(own[start : start + out_bytes], w_out, False)
    own[start + out_bytes :].zero_()
    return own


def untile_expert(
    tiles: Tensor, width: int, expert_width: int, bits: Bits, gated: bool
) -> ExpertGroups:
    """The groups of one expert: the reverse of `tile_expert`."""
    rows = rows_in(expert_width, gated)
    w_in = untile(tiles, rows, width, bits)
    if gated:
        w_in = Groups(
            deinterleave_gate_up(w_in.q_NK, expert_width),
            deinterleave_gate_up(w_in.scale_NG, expert_width),
            bits,
        )
    else:
        w_in = w_in.rows(slice(expert_width))
    start = w_out_start(width, expert_width, bits, gated)
    return ExpertGroups(w_in, untile(tiles[start:], width, up(expert_width, GROUP), bits))


def _bytes_of(groups: Groups, gated: bool) -> int:
    n, k = groups.shape
    return tiled_bytes(rows_in(n // 2, True) if gated else n, k, groups.bits)


def _tile_into(
    tiles: Tensor, groups: Groups, gated: bool, kernels: InstructionSet = "auto"
) -> None:
    module = native()
    if module is None:
        check_offered(kernels)
        tiles.copy_(tile_naive(groups, gated))
        return
    q_NK, scale_NG = groups.q_NK.contiguous(), groups.scale_NG.contiguous()
    module.tile_numbers(
        q_NK.data_ptr(),
        scale_NG.data_ptr(),
        *groups.shape,
        groups.bits,
        gated,
        number_of(kernels),
        tiles.data_ptr(),
    )


def _blocks(tiles: Tensor, n: int, k: int, bits: Bits) -> Tensor:
    """The bytes of a matrix as (U, B, bytes of a block); bytes after the matrix are ignored."""
    blocks = up(k, BLOCK) // BLOCK
    return tiles[: tiled_bytes(n, k, bits)].view(-1, blocks, block_bytes(bits))


def _parts(tiles_UB: Tensor) -> tuple[Tensor, Tensor]:
    """Views of scales as fp16 (U, B, T, G, C), and of numbers as int32 words (U, B, G, L, T, C)."""
    scales = tiles_UB[..., :BLOCK_SCALE_BYTES].view(torch.float16)
    quants = tiles_UB[..., BLOCK_SCALE_BYTES:].view(torch.int32)
    return scales.unflatten(2, (2, 2, TILE)), quants.unflatten(2, (2, -1, 2, TILE))


def _numbers(word: Tensor, bits: Bits) -> Tensor:
    """The int8 numbers of the words, in the order of inputs; the last dim of `word` is L."""
    if bits == 4:
        nibble = 0x0F0F0F0F
        word = torch.stack([word & nibble, (word >> 4) & nibble], -1)
    # torch reports every empty tensor as contiguous, although its strides may not allow the view.
    word = word.contiguous() if word.numel() else word.new_empty(0)
    return (word.view(torch.uint8) - _OFFSET[bits]).view(torch.int8)
