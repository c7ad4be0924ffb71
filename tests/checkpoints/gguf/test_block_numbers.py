"""K-quants by the compiled kernels against llama.cpp's own package, bit for bit.

N rows, B bytes of all blocks of a row, K columns.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mixtura.checkpoints.gguf.block_numbers import K_QUANTS, numbers, numbers_naive
from mixtura.checkpoints.gguf.kinds import BLOCKS, Kind
from mixtura.errors import ConfigError
from mixtura.kernels.native import InstructionSet, instruction_sets, native
from mixtura.kernels.packed.groups import Bits, quantise, quantise_blocks

# Where in a block its fp16 scales are.
SCALES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
}
pytestmark = pytest.mark.skipif(native() is None, reason="no compiled kernels here")
kinds = pytest.mark.parametrize("kind", sorted(K_QUANTS), ids=lambda kind: kind.name)


def random_rows(
    kind: Kind, rows: int, blocks: int, *, scales: bool = True, most: int = 4
) -> NDArray[np.uint8]:
    """Random bytes; with `scales` each fp16 scale is at most 10^most, some are 0 or subnormal."""
    random = np.random.default_rng(rows * 100 + blocks)
    row_NB = random.integers(0, 256, (rows, blocks, BLOCKS[kind].bytes), dtype=np.uint8)
    if scales:
        for at in SCALES[kind]:
            size = 10.0 ** random.uniform(-9, most, (rows, blocks))
            sign = random.choice([-1, 0, 1], (rows, blocks), p=[0.45, 0.1, 0.45])
            row_NB[..., at : at + 2] = (sign * size).astype(np.float16)[..., None].view(np.uint8)
    return row_NB.reshape(rows, blocks * BLOCKS[kind].bytes)


@kinds
@pytest.mark.parametrize("kernels", instruction_sets())
def test_kernels_equal_the_package_bit_for_bit(kind: Kind, kernels: InstructionSet) -> None:
    # 63 and 65 blocks are just below and above what a thread claims at a time.
    for rows, blocks in ((1, 1), (3, 21), (13, 5), (50, 7)):
        row_NB = random_rows(kind, rows, blocks)
        found_NK, wanted_NK = numbers(row_NB, kind, kernels), numbers_naive(row_NB, kind)
        assert found_NK.dtype == np.float32
        assert np.array_equal(found_NK.view(np.uint32), wanted_NK.view(np.uint32))


@kinds
def test_scales_that_are_not_finite_are_kept(kind: Kind) -> None:
    row_NB = random_rows(kind, 200, 3, scales=False)
    found_NK, wanted_NK = numbers(row_NB, kind), numbers_naive(row_NB, kind)
    assert not np.isfinite(wanted_NK).all()
    assert np.array_equal(found_NK, wanted_NK, equal_nan=True)


@kinds
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kernels", instruction_sets())
def test_quantised_blocks_equal_the_quantised_matrix(
    kind: Kind, bits: Bits, kernels: InstructionSet
) -> None:
    # 3 rows of 7 blocks are more than the 16 blocks that a thread unpacks at a time.
    for rows, blocks in ((1, 1), (3, 7)):
        row_NB = torch.from_numpy(random_rows(kind, rows, blocks, most=0))
        weight_NK = torch.from_numpy(numbers(row_NB.numpy(), kind))
        found = quantise_blocks(row_NB, int(kind), 256 * blocks, bits, kernels)
        wanted = quantise(weight_NK, bits, kernels=kernels)
        assert found is not None
        assert found.bits == bits
        assert torch.equal(found.q_NK, wanted.q_NK)
        assert torch.equal(found.scale_NG, wanted.scale_NG)


@kinds
def test_blocks_that_cannot_be_quantised_have_no_groups(kind: Kind) -> None:
    row_NB = random_rows(kind, 2, 1)
    row_NB[1, SCALES[kind][0] : SCALES[kind][0] + 2] = np.array(np.inf, np.float16).view("2u1")
    assert quantise_blocks(torch.from_numpy(row_NB), int(kind), 256, 8) is None


def test_rows_that_do_not_follow_one_another_are_copied() -> None:
    row_NB = random_rows(Kind.Q4_K, 6, 2)
    found = numbers(row_NB[::2], Kind.Q4_K)
    assert np.array_equal(found, numbers_naive(np.ascontiguousarray(row_NB[::2]), Kind.Q4_K))


def test_q2_k_by_hand() -> None:
    # Scale 3 and minimum 2 of group 0 in byte 0x23; factors 0.5 and 0.25. Numbers 0..3 of the first
    # four bytes give 0.5*3*q - 0.25*2: -0.5, 1, 2.5 and 4. Other groups have scale and minimum 0.
    block = np.zeros((1, 84), np.uint8)
    block[0, 0], block[0, 16:20] = 0x23, [0, 1, 2, 3]
    block[0, 80:84] = np.array([0.5, 0.25], np.float16).view(np.uint8)
    assert numbers(block, Kind.Q2_K)[0, :5].tolist() == [-0.5, 1, 2.5, 4, -0.5]
    assert not numbers(block, Kind.Q2_K)[0, 16:].any()


def test_other_kinds_are_left_to_the_package() -> None:
    row_NB = np.zeros((2, BLOCKS[Kind.Q4_1].bytes), np.uint8)
    assert not numbers(row_NB, Kind.Q4_1).any()
    with pytest.raises(NotImplementedError):
        numbers(np.zeros((1, 292), np.uint8), Kind.Q8_K)
    missing: InstructionSet = "amx"
    if missing not in instruction_sets():
        with pytest.raises(ConfigError, match="kernels=amx are missing"):
            numbers(row_NB, Kind.Q4_1, missing)
