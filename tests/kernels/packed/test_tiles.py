"""The layout of tiles, byte by byte, and back again.

N output channels, K inputs, D width, F expert width, H = 2F where gated.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixtura.kernels.native import instruction_sets, native
from mixtura.kernels.packed.groups import Bits, Groups, quantise
from mixtura.kernels.packed.tiles import (
    block_bytes,
    deinterleave_gate_up,
    expert_bytes,
    interleave_gate_up,
    rows_in,
    tile,
    tile_expert,
    tile_naive,
    tiled_bytes,
    untile,
    untile_expert,
    untile_rows,
    w_out_start,
)

BITS: list[Bits] = [4, 8]


def drawn(n: int, k: int, bits: Bits, seed: int = 0) -> Groups:
    """Any numbers and scales: the layout is not the quantiser's."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    q_NK = torch.randint(low, high, (n, k), generator=generator).to(torch.int8)
    return Groups(q_NK, torch.randn(n, k // 32, generator=generator).half(), bits)


def same(one: Groups, other: Groups) -> bool:
    return (
        one.bits == other.bits
        and torch.equal(one.q_NK, other.q_NK)
        and torch.equal(one.scale_NG, other.scale_NG)
    )


def byte_of(n: int, k: int, inputs: int, bits: Bits) -> tuple[int, int]:
    """Where weight [n, k] of a matrix so wide lies: its byte, and the byte of its scale."""
    unit, channel = divmod(n, 32)
    tile_of, channel = divmod(channel, 16)
    block, k = divmod(k, 64)
    group, k = divmod(k, 32)
    start = (unit * -(-inputs // 64) + block) * (1152 if bits == 4 else 2176)
    # Four bits: two times 4 inputs a line; eight: 4.
    line, k = divmod(k, 8 if bits == 4 else 4)
    lines = 4 if bits == 4 else 8
    quant = start + 128 + ((group * lines + line) * 2 + tile_of) * 64 + channel * 4 + k % 4
    return quant, start + (tile_of * 2 + group) * 32 + channel * 2


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (32, 64), (33, 96), (50, 160)])
def test_every_weight_lies_where_the_format_says(n: int, k: int, bits: Bits) -> None:
    groups = drawn(n, k, bits)
    tiles = tile(groups)
    for row in range(n):
        for column in range(k):
            at, at_scale = byte_of(row, column, k, bits)
            byte = int(tiles[at])
            stored = (byte >> 4 if column % 8 >= 4 else byte & 15) if bits == 4 else byte
            assert stored - (8 if bits == 4 else 128) == groups.q_NK[row, column]
            scale = tiles[at_scale : at_scale + 2].view(torch.float16)
            assert scale.item() == groups.scale_NG[row, column // 32].item()


@pytest.mark.skipif(native() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("k", [32, 64, 96, 320])
@pytest.mark.parametrize("n", [0, 1, 33, 80])
@pytest.mark.parametrize("step", [1, 2])
def test_compiled_tiles_are_those_of_their_twin(n: int, k: int, bits: Bits, step: int) -> None:
    # Every second row is not contiguous.
    groups = drawn(step * n, k, bits).rows(slice(None, None, step))
    expected = tile_naive(groups)
    for kernels in instruction_sets():
        assert torch.equal(tile(groups, kernels=kernels), expected), kernels


@pytest.mark.skipif(native() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("hidden", [1, 5, 16, 17, 40])
def test_compiled_tiles_interleave_gate_and_up_as_their_twin_does(hidden: int, bits: Bits) -> None:
    groups = drawn(2 * hidden, 96, bits)
    expected = tile_naive(groups, gated=True)
    for kernels in instruction_sets():
        assert torch.equal(tile(groups, True, kernels), expected), kernels


def test_sizes_by_hand() -> None:
    # 128 bytes of scales; 32 x 64 weights in half a byte or in one.
    assert (block_bytes(4), block_bytes(8)) == (128 + 1024, 128 + 2048)
    # 33 channels are two units, 96 inputs two blocks.
    assert tiled_bytes(33, 96, 4) == 2 * 2 * 1152
    assert tiled_bytes(0, 64, 8) == 0
    # OLMoE's expert: 64 units of 32 blocks, then 64 units of 16: 3072 blocks are 864 pages.
    assert expert_bytes(2048, 1024, 4, gated=True) == 3072 * 1152 == 864 * 4096
    # F = 5 is 16 gate and 16 up rows of one block, then one unit of one block: 2304 bytes, a page.
    assert w_out_start(32, 5, 4, gated=True) == 1152
    assert expert_bytes(32, 5, 4, gated=True) == 4096
    assert (rows_in(20, True), rows_in(20, False)) == (64, 32)


@given(st.integers(0, 70), st.integers(1, 5), st.sampled_from(BITS), st.integers(0, 99))
def test_untile_gives_back_what_was_tiled(n: int, groups: int, bits: Bits, seed: int) -> None:
    given_groups = drawn(n, 32 * groups, bits, seed)
    tiles = tile(given_groups)
    assert len(tiles) == tiled_bytes(n, 32 * groups, bits)
    assert same(untile(tiles, n, 32 * groups, bits), given_groups)


@pytest.mark.parametrize("bits", BITS)
def test_padding_weighs_nothing(bits: Bits) -> None:
    # 20 channels and 32 inputs of a unit of 32 by a block of 64.
    tiles = tile(drawn(20, 32, bits))
    whole = untile(tiles, 32, 64, bits)
    for part in (
        whole.rows(slice(20, 32)),
        Groups(whole.q_NK[:, 32:], whole.scale_NG[:, 1:], bits),
    ):
        assert part.q_NK.count_nonzero() == part.scale_NG.count_nonzero() == 0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [[], [0], [69, 3, 3, 40, 15, 16, 31, 32]])
def test_rows_alone_are_those_of_the_whole(rows: list[int], bits: Bits) -> None:
    groups = drawn(70, 96, bits)
    row_R = torch.tensor(rows, dtype=torch.int64)
    found = untile_rows(tile(groups), row_R, 70, 96, bits)
    assert same(found, groups.rows(row_R))


def test_gate_and_up_by_hand() -> None:
    # F = 17: rows 0..15 of gate, 0..15 of up, then row 16 of each before 15 of padding.
    w_HD = torch.arange(1, 35).view(34, 1)
    mixed_H = interleave_gate_up(w_HD).flatten().tolist()
    gate, up = list(range(1, 18)), list(range(18, 35))
    assert mixed_H == gate[:16] + up[:16] + gate[16:] + [0] * 15 + up[16:] + [0] * 15
    assert torch.equal(deinterleave_gate_up(interleave_gate_up(w_HD), 17), w_HD)


def pair(width: int, hidden: int, bits: Bits, gated: bool) -> tuple[Groups, Groups]:
    """w_in, and w_out with zeros where 32 does not divide the expert's width."""
    w_in = drawn(hidden * (2 if gated else 1), width, bits)
    w_out: Tensor = torch.randn(width, hidden, generator=torch.Generator().manual_seed(1))
    return w_in, quantise(torch.nn.functional.pad(w_out, (0, -hidden % 32)), bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("width", "hidden"), [(32, 16), (64, 48), (96, 40), (32, 5), (32, 96)])
def test_an_expert_comes_back(width: int, hidden: int, bits: Bits, gated: bool) -> None:
    w_in, w_out = pair(width, hidden, bits, gated)
    own = tile_expert(w_in, w_out, gated)
    assert len(own) == expert_bytes(width, hidden, bits, gated)
    assert len(own) % 4096 == 0
    found = untile_expert(own, width, hidden, bits, gated)
    assert same(found.w_in, w_in)
    assert same(found.w_out, w_out)


def test_a_unit_of_a_gated_expert_is_16_of_gate_and_the_16_of_up_beside_them() -> None:
    # D = 32, F = 32: unit 1 holds rows 16..31 of gate in its first tile, and of up in its second.
    w_in, w_out = pair(32, 32, 8, True)
    own = tile_expert(w_in, w_out, True)
    unit = untile(own[block_bytes(8) :], 32, 32, 8)
    assert same(unit.rows(slice(16)), w_in.rows(slice(16, 32)))
    assert same(unit.rows(slice(16, 32)), w_in.rows(slice(48, 64)))
    start = w_out_start(32, 32, 8, True)
    assert same(untile(own[start:], 32, 32, 8), w_out)
