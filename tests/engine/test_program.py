"""The fused program beside the modules one after another, for every decoder it expresses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.engine.both_steps import COVERED, REFUSED, SETS, SLOTS, Pack, chunk, pair, together
from tests.engine.packed_families import packed
from tests.engine.tiny_families import BASE, FAMILIES, built
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan, KVKind
from mixtura.engine.module_steps import ModuleSteps
from mixtura.engine.program import Program, why_not
from mixtura.engine.rope_tables import RopeTables
from mixtura.engine.runner import Runner
from mixtura.errors import ConfigError
from mixtura.kernels.native import native, set_threads

pytestmark = pytest.mark.skipif(native() is None, reason="no compiled kernels here")


@pytest.mark.parametrize("name", COVERED)
def test_the_program_is_its_twin(pack: Pack, name: str) -> None:
    both = pair(pack(name))
    both.assert_equal(together(chunk(2, 0, 20), chunk(0, 0, 1), chunk(3, 0, 7)), "prefill")
    both.assert_equal(chunk(2, 20, 26), "prefill")
    for more in range(3):
        rows = together(chunk(3, 7 + more, 8 + more), chunk(2, 26 + more, 27 + more))
        both.assert_equal(rows, "decode")


def test_four_bits(tmp_path: Path) -> None:
    both = pair(packed(built({**BASE, **FAMILIES["olmoe"]}, width=32), tmp_path, bits=4))
    both.assert_equal(chunk(1, 0, 20), "prefill")
    both.assert_equal(chunk(1, 20, 21), "decode")


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "gemma3"])
def test_each_kind_of_cache(pack: Pack, name: str, kv: KVKind) -> None:
    both = pair(pack(name), kv)
    # A key on the other side of a tie differs by 2^-8 of itself, or by 1/127.
    both.assert_equal(chunk(1, 0, 30), "prefill", 3e-2)
    both.assert_equal(chunk(1, 30, 31), "decode", 3e-2)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 17, 40])
def test_rows_of_different_lengths(pack: Pack, count: int) -> None:
    both = pair(pack("olmoe"), slots=SLOTS)
    lengths = [1 + 7 * slot % 30 for slot in range(count)]
    prompts = together(chunk(0, 0, 0), *(chunk(slot, 0, n) for slot, n in enumerate(lengths)))
    rows = together(chunk(0, 0, 0), *(chunk(slot, n, n + 1) for slot, n in enumerate(lengths)))
    if count:
        both.assert_equal(prompts, "prefill")
        both.assert_equal(rows, "decode")
    else:
        assert both.program(rows, "decode", torch.arange(0)).shape == (0, 23)


def test_nobody_asked_for(pack: Pack) -> None:
    both = pair(pack("olmoe"))
    assert both.program(chunk(1, 0, 9), "prefill", torch.arange(0)).shape == (0, 23)
    with torch.inference_mode():
        both.modules(chunk(1, 0, 9), "prefill", torch.arange(0))
    # All that was read is kept.
    both.assert_equal(chunk(1, 9, 10), "decode")


@pytest.mark.parametrize("asked", [[19], [3, 4, 19], [19, 0, 7], [5, 5], list(range(20))])
def test_only_the_rows_asked_for(pack: Pack, asked: list[int]) -> None:
    rows, logit_row_N = chunk(1, 0, 20), torch.tensor(asked)
    some, whole = (pair(pack("gpt_oss"), "bf16").program for _ in range(2))
    with torch.inference_mode():
        expected_NV = whole(rows, "prefill", torch.arange(20))[logit_row_N]
        assert torch.equal(some(rows, "prefill", logit_row_N), expected_NV)
        # The keys and values of all are kept.
        after, first_N = chunk(1, 20, 21), torch.arange(1)
        assert torch.equal(some(after, "decode", first_N), whole(after, "decode", first_N))


@pytest.fixture
def other_threads() -> Iterator[None]:
    """The number of threads as it was, afterwards."""
    module = native()
    before = 1 if module is None else module.threads()
    yield
    set_threads(before)


@pytest.mark.usefixtures("other_threads")
def test_every_instruction_set_and_number_of_threads(pack: Pack) -> None:
    decoder = pack("qwen2_moe")
    plan, angles = CachePlan(decoder.config, 2, 48, "bf16"), RopeTables.of(decoder.config, 48)
    for kernels in SETS:
        outputs: list[Tensor] = []
        for threads in (1, 3):
            set_threads(threads)
            program = Program(decoder, plan.allocate(), angles, kernels)
            program(chunk(0, 0, 20), "prefill", torch.arange(20))
            outputs.append(program(chunk(0, 20, 21), "decode", torch.arange(1)))
        assert torch.equal(*outputs), kernels
        modules = ModuleSteps(decoder, plan.allocate(), angles)
        with torch.inference_mode():
            modules(chunk(0, 0, 20), "prefill", torch.arange(20))
            expected_NV = modules(chunk(0, 20, 21), "decode", torch.arange(1))
        # The prompt is read in other arithmetics, int8 or bf16.
        assert (outputs[0] - expected_NV).abs().max() < 5e-2 * expected_NV.abs().max(), kernels


@pytest.mark.parametrize(("family", "reason"), REFUSED.items())
def test_what_no_program_expresses_is_named(pack: Pack, family: str, reason: str) -> None:
    assert why_not(pack(family)) == reason
    with pytest.raises(ConfigError, match=reason):
        Runner(pack(family), CachePlan(pack(family).config, 1, 8, "bf16"), fused=True)


def test_a_decoder_that_is_not_packed_has_none() -> None:
    assert why_not(built(BASE, width=16)) == "a head that is not packed"


def test_a_place_outside_the_cache_is_refused(pack: Pack) -> None:
    program = pair(pack("llama"), slots=2).program
    with pytest.raises(IndexError, match=r"slot 2 must lie in 0\.\.1"):
        program(chunk(2, 0, 1), "decode", torch.arange(1))
    with pytest.raises(IndexError, match=r"asked row 1 must lie in 0\.\.0"):
        program(chunk(1, 0, 1), "decode", torch.tensor([1]))
