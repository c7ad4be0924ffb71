"""Blocks of 32 weights: as llama.cpp has them, and exactly ours."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.checkpoints.gguf.blocks import BITS, packed, unpacked
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.kernels.packed.groups import Bits, Groups, dequantise

KINDS = list(BITS)


def test_a_block_of_4_bits_by_hand() -> None:
    # Scale 0.5 is 0x3800. Byte j holds weight j in its lower four bits and weight j + 16 in its
    # upper ones, each 8 too large: byte 0 is 0x80 (-8 and 0), byte 1 is 0xF9 (1 and 7), and the
    # others 0x88 (0 and 0).
    raw = np.array([[0x00, 0x38, 0x80, 0xF9, *[0x88] * 14]], np.uint8)
    groups = unpacked(raw, Kind.Q4_0)
    assert groups is not None
    expected = np.zeros(32)
    expected[[0, 16, 1, 17]] = [-8, 0, 1, 7]
    assert (groups.q_NK.tolist(), groups.scale_NG.tolist()) == ([expected.tolist()], [[0.5]])
    assert dequantise(groups)[0, :2].tolist() == [-4.0, 0.5]
    assert np.array_equal(packed(groups), raw)


def test_a_block_of_8_bits_by_hand() -> None:
    # Scale -2 is 0xC000; the numbers follow as they are.
    numbers = [127, -127, 1, *[0] * 29]
    raw = np.array([0x00, 0xC0, *np.array(numbers, np.int8).view(np.uint8)], np.uint8)[None]
    groups = unpacked(raw, Kind.Q8_0)
    assert groups is not None
    assert (groups.q_NK[0].tolist(), groups.scale_NG.tolist()) == (numbers, [[-2.0]])
    assert np.array_equal(packed(groups), raw)


def test_a_number_that_groups_do_not_hold_is_left_to_the_reader() -> None:
    raw = np.array([[0, 0x38, 0x80, *[0] * 31]], np.uint8)
    assert unpacked(raw, Kind.Q8_0) is None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_groups_go_out_and_in_as_they_are(
    kind: GGMLQuantizationType, rows: int, blocks: int, seed: int
) -> None:
    bits: Bits = BITS[Kind(kind)]
    draw = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    q_NK = torch.randint(low, high, (rows, 32 * blocks), generator=draw, dtype=torch.int8)
    groups = Groups(q_NK, torch.randn(rows, blocks, generator=draw).half(), bits)
    raw = packed(groups)
    assert raw.shape == (rows, blocks * (18 if bits == 4 else 34))
    again = unpacked(raw, Kind(kind))
    assert again is not None
    assert torch.equal(again.q_NK, groups.q_NK)
    assert torch.equal(again.scale_NG, groups.scale_NG)
    if rows:
        assert np.array_equal(gguf.dequantize(raw, kind), dequantise(groups).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_what_llama_cpps_package_quantises_is_read_as_it_unpacks_it(
    kind: GGMLQuantizationType,
) -> None:
    weights = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    raw = gguf.quantize(weights, kind)
    groups = unpacked(raw, Kind(kind))
    assert groups is not None
    assert np.array_equal(dequantise(groups).numpy(), gguf.dequantize(raw, kind))
    assert np.array_equal(packed(groups), raw)
