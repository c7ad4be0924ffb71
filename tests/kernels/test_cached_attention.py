"""R rows, A query heads, G key-value heads, C key dim, V value dim, L positions."""

import math
from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch import Tensor

from mixtura.kernels.cached_attention import (
    LayerKV,
    append,
    append_naive,
    cached_attention,
    cached_attention_naive,
    cached_attention_torch,
)
from mixtura.kernels.native import InstructionSet, instruction_sets, native, set_threads
from mixtura.kernels.phase import PHASES, Phase

SETS = cast("tuple[InstructionSet, ...]", instruction_sets())
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
# Lengths of the slots of `filled`: within a block of positions, and over several splits.
LENGTHS = [9, 70, 600]
needs_native = pytest.mark.skipif(native() is None, reason="no compiled kernels here")


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def filled(
    heads: int, key_dim: int, value_dim: int, dtype: torch.dtype, *, values_in_keys: bool = False
) -> LayerKV:
    """Three slots of LENGTHS positions; all behind them is NaN, or 127."""
    cache = LayerKV.empty(
        3, heads, max(LENGTHS), key_dim, value_dim, dtype, values_in_keys=values_in_keys
    )
    for kept in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
        if kept is not None:
            kept.fill_(torch.nan if kept.is_floating_point() else 127)
    for slot, length in enumerate(LENGTHS):
        k_LGC, v_LGV = normal(length, heads, key_dim, seed=slot), normal(length, heads, value_dim)
        slot_L, position_L = torch.full((length,), slot), torch.arange(length)
        append_naive(cache, k_LGC, None if values_in_keys else v_LGV, slot_L, position_L)
    return cache


def some_rows(count: int) -> tuple[Tensor, Tensor]:
    """(slot_R, position_R): of all slots, in no order."""
    slot_R = torch.arange(count) * 7 % 3
    position_R = torch.arange(count) * 37 % torch.tensor(LENGTHS)[slot_R]
    return slot_R, torch.where(torch.arange(count) % 5 == 0, position_R, last_of(slot_R))


def last_of(slot_R: Tensor) -> Tensor:
    return torch.tensor(LENGTHS)[slot_R] - 1


def error_bound(kernels: str, dtype: torch.dtype) -> float:
    # With tiles queries and weights are rounded to bf16, 2^-9 of each; else the sums differ alone.
    return 2e-2 if kernels == "amx" and dtype != torch.float32 else 2e-5


def assert_near(found: Tensor, expected: Tensor, bound: float, of: object) -> None:
    assert found.shape == expected.shape
    assert not found.numel() or (found - expected).abs().max() <= bound * expected.abs().max(), of


@pytest.mark.parametrize("phase", list(PHASES))
def test_by_hand(phase: Phase) -> None:
    # Keys 0 and ln 3 under a query of 1: weights 1/4 and 3/4 of the values 4 and 8: 1 + 6 = 7.
    cache = LayerKV.empty(2, 1, 4, 1, 1, torch.float32)
    slot_R, position_R = torch.tensor([1, 1]), torch.tensor([0, 1])
    k_RGC = torch.tensor([0.0, math.log(3)]).view(2, 1, 1)
    append(cache, k_RGC, torch.tensor([4.0, 8.0]).view(2, 1, 1), slot_R, position_R)

    out_RAV = cached_attention(torch.ones(2, 1, 1), cache, slot_R, position_R, 1.0, phase)

    torch.testing.assert_close(out_RAV.flatten(), torch.tensor([4.0, 7.0]))


@pytest.mark.parametrize("phase", list(PHASES))
def test_window_and_sink_by_hand(phase: Phase) -> None:
    # Scores of 0: each of two seen counts 1, and a sink of ln 2 counts 2: (4 + 8) / 4 = 3.
    cache = LayerKV.empty(1, 1, 4, 2, 1, torch.float32)
    slot_R, position_R = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    v_RGV = torch.tensor([100.0, 4.0, 8.0]).view(3, 1, 1)
    append(cache, torch.zeros(3, 1, 2), v_RGV, slot_R, position_R)
    sinks_A = torch.tensor([math.log(2)])

    out_RAV = cached_attention(
        torch.ones(1, 1, 2), cache, slot_R[2:], position_R[2:], 0.5, phase, 2, sinks_A
    )

    torch.testing.assert_close(out_RAV.flatten(), torch.tensor([3.0]))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [2, 16])
def test_who_sees_one_position_gets_its_value(heads: int, dtype: torch.dtype) -> None:
    cache = filled(2, 32, 40, dtype)
    slot_R, position_R = some_rows(30)
    kept_RGV = cache.values[slot_R, :, position_R].float()
    if cache.value_scales is not None:
        kept_RGV = kept_RGV * cache.value_scales[slot_R, :, position_R, None]
    expected_RAV = kept_RGV.repeat_interleave(heads // 2, 1)
    for kernels in SETS:
        for phase in PHASES:
            how = (1.0, phase, 1, None, kernels)
            out_RAV = cached_attention(normal(30, heads, 32), cache, slot_R, position_R, *how)
            # The scale of an int8 value may be rounded to bf16.
            bound = error_bound(kernels, dtype) if dtype == torch.int8 else 1e-5
            assert_near(out_RAV, expected_RAV, bound, (kernels, phase))


def test_int8_by_hand() -> None:
    # The largest size, 2, becomes 127: 1 is 63.5, a tie that goes to 64, and -0.5 is -31.75.
    cache = LayerKV.empty(1, 1, 1, 3, 1, torch.int8)
    zero_R = torch.zeros(1, dtype=torch.int64)

    append(cache, torch.tensor([[[1.0, -2.0, -0.5]]]), torch.zeros(1, 1, 1), zero_R, zero_R)

    assert cache.keys.flatten().tolist() == [64, -127, -32]
    assert cache.key_scales is not None
    torch.testing.assert_close(cache.key_scales.flatten(), torch.tensor([2 / 127]))
    # Of zeros the scale is 0.
    assert cache.value_scales is not None
    assert cache.value_scales.item() == cache.values.item() == 0


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key_dim", [1, 16, 33, 128])
def test_what_is_kept_is_the_twins_to_the_bit(key_dim: int, dtype: torch.dtype) -> None:
    k_RGC, v_RGV = normal(40, 3, key_dim), normal(40, 3, 20, seed=1).bfloat16()
    slot_R, position_R = torch.arange(40) % 2, torch.arange(40)
    for kernels in SETS:
        found, expected = (LayerKV.empty(2, 3, 40, key_dim, 20, dtype) for _ in range(2))
        for cache in (found, expected):
            for kept in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
                if kept is not None:
                    kept.zero_()
        append(found, k_RGC, v_RGV, slot_R, position_R, kernels)
        append_naive(expected, k_RGC, v_RGV, slot_R, position_R)
        assert torch.equal(found.keys, expected.keys), kernels
        assert torch.equal(found.values, expected.values), kernels
        if found.key_scales is not None and expected.key_scales is not None:
            assert torch.equal(found.key_scales, expected.key_scales), kernels


SHAPES = {
    "one key a query": (4, 4, 64, 64),
    "wide": (2, 1, 256, 256),
    "grouped": (16, 2, 128, 128),
    "seven queries a key": (7, 1, 80, 80),
    "odd dims": (6, 2, 33, 17),
    "small": (40, 1, 16, 16),
    "one dim": (2, 2, 1, 3),
}


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_instruction_set_is_the_twin(shape: str, dtype: torch.dtype) -> None:
    heads, kv_heads, key_dim, value_dim = SHAPES[shape]
    cache = filled(kv_heads, key_dim, value_dim, dtype)
    check_against_twin(cache, heads, dtype)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_within_keys(dtype: torch.dtype) -> None:
    cache = filled(1, 72, 64, dtype, values_in_keys=True)
    assert cache.values.data_ptr() == cache.keys.data_ptr()
    check_against_twin(cache, 12, dtype)


def check_against_twin(cache: LayerKV, heads: int, dtype: torch.dtype) -> None:
    scale = cache.keys.shape[3] ** -0.5
    for count in (0, 1, 2, 11, 40):
        q_RAC = normal(count, heads, cache.keys.shape[3], seed=count)
        rows = some_rows(count)
        for window, sinks_A in ((None, None), (65, normal(heads))):
            naive_RAV = cached_attention_naive(q_RAC, cache, *rows, scale, window, sinks_A)
            for kernels in SETS:
                for phase in PHASES:
                    out_RAV = cached_attention(
                        q_RAC, cache, *rows, scale, phase, window, sinks_A, kernels
                    )
                    bound = error_bound(kernels, dtype)
                    assert_near(out_RAV, naive_RAV, bound, (kernels, phase, count, window))


@needs_native
@pytest.mark.parametrize("phase", list(PHASES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 100])
def test_a_row_does_not_depend_on_its_neighbours(
    window: int | None, dtype: torch.dtype, phase: Phase
) -> None:
    cache = filled(2, 32, 32, dtype)
    # A chunk of one sequence, and rows of others around it.
    slot_R = torch.cat([torch.tensor([0, 1, 1]), torch.full((150,), 2), torch.tensor([0])])
    position_R = torch.cat([torch.tensor([8, 69, 3]), torch.arange(450, 600), torch.tensor([2])])
    q_RAC = normal(len(slot_R), 6, 32)
    for kernels in SETS:
        how = (0.2, phase, window, None, kernels)
        whole_RAV = cached_attention(q_RAC, cache, slot_R, position_R, *how)
        for part in (slice(0, 1), slice(1, 40), slice(77, 78), slice(100, 154)):
            part_RAV = cached_attention(q_RAC[part], cache, slot_R[part], position_R[part], *how)
            assert torch.equal(part_RAV, whole_RAV[part]), (kernels, part)


@pytest.fixture
def other_threads() -> Iterator[None]:
    """The number of threads as it was, afterwards."""
    module = native()
    before = 1 if module is None else module.threads()
    yield
    set_threads(before)


@needs_native
@pytest.mark.usefixtures("other_threads")
@pytest.mark.parametrize("phase", list(PHASES))
def test_any_number_of_threads_gives_the_same_sums(phase: Phase) -> None:
    cache, rows = filled(2, 64, 64, torch.bfloat16), some_rows(9)
    q_RAC, outputs = normal(9, 4, 64), []
    for threads in (1, 2, 5):
        set_threads(threads)
        outputs += [cached_attention(q_RAC, cache, *rows, 0.1, phase) for _ in range(3)]
    assert all(torch.equal(out_RAV, outputs[0]) for out_RAV in outputs)


@needs_native
def test_a_place_outside_the_cache_is_refused() -> None:
    cache, zero_R = LayerKV.empty(2, 1, 4, 8, 8, torch.float32), torch.zeros(1, dtype=torch.int64)
    row = torch.zeros(1, 1, 8)
    with pytest.raises(IndexError, match=r"slot 2 must lie in 0\.\.1"):
        append(cache, row, row, zero_R + 2, zero_R)
    with pytest.raises(IndexError, match=r"position -1 must lie in 0\.\.3"):
        cached_attention(row, cache, zero_R, zero_R - 1, 1.0, "decode")


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_the_compiled_module_the_twins_serve(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixtura.kernels.cached_attention.cpu.native", lambda: None)
    cache, expected = filled(2, 16, 16, dtype), filled(2, 16, 16, dtype)
    (slot_R, position_R), k_RGC = some_rows(3), normal(3, 2, 16, seed=5)
    append(cache, k_RGC, k_RGC, slot_R, position_R)
    append_naive(expected, k_RGC, k_RGC, slot_R, position_R)

    out_RAV = cached_attention(normal(3, 4, 16), cache, slot_R, position_R, 0.25, "decode")

    naive_RAV = cached_attention_naive(normal(3, 4, 16), expected, slot_R, position_R, 0.25)
    assert torch.equal(out_RAV, naive_RAV)


def test_compiles_whole() -> None:
    cache, rows = filled(1, 16, 8, torch.float32), some_rows(3)

    def twice(q_RAC: Tensor) -> Tensor:
        return 2 * cached_attention(q_RAC, cache, *rows, 0.25, "decode")

    compiled = torch.compile(twice, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(normal(3, 2, 16)), twice(normal(3, 2, 16)))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_torchs_operations_compute_what_the_twin_does(
    name: str, dtype: torch.dtype, window: int | None
) -> None:
    heads, kv_heads, key_dim, value_dim = SHAPES[name]
    cache = LayerKV.empty(3, kv_heads, 12, key_dim, value_dim, dtype)
    for kept in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
        if kept is not None:
            kept.zero_()
    slot_R, position_R = torch.tensor([2] * 9 + [0] * 3), torch.tensor([*range(9), *range(3)])
    k_RGC, v_RGV = normal(12, kv_heads, key_dim), normal(12, kv_heads, value_dim, seed=1)
    append_naive(cache, k_RGC, v_RGV, slot_R, position_R)
    rows = torch.tensor([3, 4, 8, 9, 11, 7])
    q_RAC, sinks_A = normal(6, heads, key_dim, seed=2), normal(heads, seed=3)
    given = (q_RAC, cache, slot_R[rows], position_R[rows], 0.3, window, sinks_A)
    torch.testing.assert_close(cached_attention_torch(*given), cached_attention_naive(*given))
