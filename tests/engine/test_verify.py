"""The phase that reads several tokens of a sequence as decode does, one after the other."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from tests.engine.both_steps import COVERED, SETS, Pack, chunk, pair, together
from tests.engine.packed_families import packed
from tests.engine.tiny_families import BASE, FAMILIES, build, built
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan, KVKind
from mixtura.engine.module_steps import ModuleSteps
from mixtura.engine.program import Program
from mixtura.engine.rope_tables import RopeTables
from mixtura.engine.runner import Runner
from mixtura.engine.steps import StepRows, Steps
from mixtura.errors import ConfigError
from mixtura.kernels.cached_attention import LayerKV, append, cached_attention
from mixtura.kernels.native import InstructionSet, native
from mixtura.kernels.packed.groups import Bits
from mixtura.kernels.packed.linear import arithmetic_of
from mixtura.kernels.phase import PHASES, Phase

needs_kernels = pytest.mark.skipif(native() is None, reason="no compiled kernels here")
ONE_N = torch.arange(1)
WAYS: list[tuple[Phase, list[slice]]] = [
    ("verify", [slice(8)]),
    ("decode", [slice(n, n + 1) for n in range(8)]),
]


def one_by_one(steps: Steps, rows: StepRows) -> Tensor:
    """logits_RV of so many steps of decode."""
    fields = (rows.token_R, rows.slot_R, rows.position_R, rows.angle_R)
    each = [StepRows(*(of_R[at : at + 1] for of_R in fields)) for at in range(len(rows))]
    return torch.cat([steps(row, "decode", ONE_N) for row in each])


def assert_verified(
    one: Steps, other: Steps, before: StepRows, rows: StepRows, after: StepRows
) -> None:
    """`one` verifies what `other` decodes, and both go on alike."""
    with torch.inference_mode():
        for steps in (one, other):
            steps(before, "prefill", torch.arange(0))
        found_RV = one(rows, "verify", torch.arange(len(rows)))
        assert torch.equal(found_RV, one_by_one(other, rows))
        assert torch.equal(one(after, "decode", ONE_N), other(after, "decode", ONE_N))


def test_every_phase_has_a_number() -> None:
    assert set(PHASES) == set(get_args(Phase))
    assert arithmetic_of("verify") == arithmetic_of("decode")


@needs_kernels
@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("bits", [4, 8])
def test_eight_rows_are_eight_steps_of_decode(
    tmp_path: Path, kernels: InstructionSet, bits: Bits
) -> None:
    decoder = packed(built({**BASE, **FAMILIES["olmoe"]}, width=64), tmp_path, bits)
    plan, angles = CachePlan(decoder.config, 2, 48), RopeTables.of(decoder.config, 48)
    one, other = (Program(decoder, plan.allocate(), angles, kernels) for _ in range(2))
    assert_verified(one, other, chunk(1, 0, 20), chunk(1, 20, 28), chunk(1, 28, 29))


@needs_kernels
@pytest.mark.parametrize("name", COVERED)
def test_of_every_decoder_that_the_program_expresses(pack: Pack, name: str) -> None:
    one, other = (pair(pack(name), "bf16").program for _ in range(2))
    assert_verified(one, other, chunk(1, 0, 20), chunk(1, 20, 28), chunk(1, 28, 29))


@needs_kernels
@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_through_modules_too(pack: Pack, name: str) -> None:
    decoder = pack(name)
    plan, angles = CachePlan(decoder.config, 4, 48, "int8"), RopeTables.of(decoder.config, 48)
    one, other = (ModuleSteps(decoder, plan.allocate(), angles) for _ in range(2))
    assert_verified(one, other, chunk(1, 0, 20), chunk(1, 20, 28), chunk(1, 28, 29))


@needs_kernels
def test_rows_of_several_sequences(pack: Pack) -> None:
    one, other = (pair(pack("gemma3"), "bf16").program for _ in range(2))
    before = together(chunk(0, 0, 9), chunk(3, 0, 20))
    rows = together(chunk(3, 20, 25), chunk(0, 9, 12))
    assert_verified(one, other, before, rows, chunk(3, 25, 26))


@needs_kernels
@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_attention_over_several_splits(kernels: InstructionSet, dtype: torch.dtype) -> None:
    # 8 rows after 700 positions, in a window of 600 and without one.
    generator = torch.Generator().manual_seed(0)
    k_RGC, v_RGC = (torch.randn(708, 2, 16, generator=generator) for _ in range(2))
    q_RAC = torch.randn(8, 8, 16, generator=generator)
    position_R = torch.arange(708)
    slot_R = torch.zeros_like(position_R)
    kept = LayerKV.empty(1, 2, 708, 16, 16, dtype)
    append(kept, k_RGC, v_RGC, slot_R, position_R, kernels)
    for window in (None, 600):
        found, expected = (
            torch.cat(
                [
                    cached_attention(
                        q_RAC[rows],
                        kept,
                        slot_R[700:][rows],
                        position_R[700:][rows],
                        0.25,
                        phase,
                        window,
                        kernels=kernels,
                    )
                    for rows in parts
                ]
            )
            for phase, parts in WAYS
        )
        assert torch.equal(found, expected)


def greedy(runner: Runner, token: int, start: int, count: int) -> list[int]:
    """`count` tokens after the one at `start`, each by a step of decode."""
    written: list[int] = []
    slot_R = torch.tensor([1])
    for position in range(start, start + count):
        (logits_V,) = runner.step(torch.tensor([token]), slot_R, torch.tensor([position]), "decode")
        token = int(logits_V.argmax())
        written.append(token)
    return written


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["olmoe", "gemma3", "deepseek_v3", "phimoe"])
def test_after_a_rewind_the_same_tokens_come_again(pack: Pack, name: str, kv: KVKind) -> None:
    # Of phimoe, whose original context is 16, the first tokens come before it and the last after.
    for decoder in (pack(name), build(name)):
        runner = Runner.of(decoder, 2, kv=kv)
        prompt = chunk(1, 0, 12)
        runner.step(prompt.token_R, prompt.slot_R, prompt.position_R, "prefill")
        place = runner.state.snapshot(1, 12)
        first = greedy(runner, 3, 12, 20)
        # Other tokens in their place, and a part of another length.
        greedy(runner, 5, runner.state.rewind(place), 7)
        assert greedy(runner, 3, runner.state.rewind(place), 20) == first


def test_rows_that_pass_longropes_original_context_midway_are_refused() -> None:
    # Of 16 positions: the 17th turns all keys anew.
    runner = Runner.of(build("phimoe"), 1)
    text = torch.arange(20)
    slot_R = torch.zeros_like(text)
    runner.step(text[:14], slot_R[:14], text[:14], "prefill")
    with pytest.raises(ConfigError, match="slot 0 pass LongRoPE's original context of 16"):
        runner.step(text[14:18], slot_R[14:18], text[14:18], "verify")
    runner.step(text[14:16], slot_R[14:16], text[14:16], "verify")
    assert runner.step(text[16:], slot_R[16:], text[16:], "verify").isfinite().all()
