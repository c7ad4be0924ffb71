"""Packed decoders with recurrent layers: their states, bit for bit, whatever way a text is read.

R rows, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.both_steps import SETS, Pack, chunk, together
from tests.engine.packed_families import packed
from tests.engine.tiny_families import BASE, FAMILIES, build, built, tokens
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan
from mixtura.engine.context import Context
from mixtura.engine.program import Program
from mixtura.engine.rope_tables import RopeTables
from mixtura.engine.runner import Runner
from mixtura.engine.sampling import Sampling
from mixtura.engine.scheduler import Scheduler
from mixtura.engine.sequence import Sequence as Answer
from mixtura.engine.steps import Chosen, Routes, StepRows
from mixtura.errors import ConfigError
from mixtura.kernels.native import InstructionSet, native
from mixtura.kernels.phase import Phase
from mixtura.models import State
from mixtura.models.recurrent_state import RecurrentLayer
from mixtura.shapes.storage import bytes_of_states, bytes_of_text
from mixtura.shapes.storage.numbers import Bits

pytestmark = pytest.mark.skipif(native() is None, reason="no compiled kernels here")
NAMES = ["lfm2", "lfm2_moe", "qwen3_next", "gated_delta_first"]
NAMES += ["granitemoehybrid", "mamba2_first"]
names = pytest.mark.parametrize("name", NAMES)
TEXT = tokens(48)


@pytest.fixture(autouse=True, params=["program", "modules"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every rule holds in the fused program and in module steps."""
    if request.param == "modules":
        monkeypatch.setattr("mixtura.engine.runner.why_not", lambda _: "these tests' choice")
    return request.param


def read(
    runner: Runner, start: int, end: int, phase: Phase, text: Sequence[int] = TEXT, slot: int = 1
) -> Tensor:
    """logits_RV of text[start:end]; in decode one step for each."""
    spans = [(n, n + 1) for n in range(start, end)] if phase == "decode" else [(start, end)]
    return torch.cat(
        [
            runner.step(
                torch.tensor(text[one:last]),
                torch.full((last - one,), slot),
                torch.arange(one, last),
                phase,
            )
            for one, last in spans
        ]
    )


def states(runner: Runner, slot: int = 1) -> list[Tensor]:
    layers = [one for one in runner.state.layers if isinstance(one, RecurrentLayer)]
    return [state[slot].clone() for layer in layers for state in layer.states]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))


@names
@pytest.mark.parametrize("parts", [[1] * 20, [3, 17], [7, 1, 9, 3], [18, 2]])
def test_a_prompt_in_any_parts_leaves_one_state(pack: Pack, name: str, parts: list[int]) -> None:
    whole, other = (Runner.of(pack(name), 2) for _ in range(2))
    expected_RV = read(whole, 0, 20, "prefill")
    at, found = 0, []
    for length in parts:
        found.append(read(other, at, at + length, "prefill"))
        at += length
    assert torch.equal(torch.cat(found), expected_RV)
    assert_same(states(other), states(whole))


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_the_same_in_any_parts_with_every_instruction_set(
    bits: Bits, kernels: InstructionSet, tmp_path: Path, way: str
) -> None:
    if way == "modules":
        pytest.skip("module steps use the fastest set")
    decoder = packed(built({**BASE, **FAMILIES["qwen3_next"]}, width=32), tmp_path, bits)
    plan, angles = CachePlan(decoder.config, 3, 48), RopeTables.of(decoder.config, 48)
    whole, parts, alone = (
        (state, Program(decoder, state, angles, kernels))
        for state in (plan.allocate() for _ in "123")
    )

    def step(of: tuple[State, Program], rows: StepRows, phase: Phase) -> Tensor:
        return of[1](rows, phase, torch.arange(len(rows)))

    with torch.inference_mode():
        # Slot 1 by itself, in parts, and beside others.
        expected_RV = step(alone, chunk(1, 0, 40), "prefill")
        assert torch.equal(
            step(whole, together(chunk(2, 0, 7), chunk(1, 0, 40)), "prefill")[7:], expected_RV
        )
        found = [step(parts, chunk(1, *span), "prefill") for span in ((0, 1), (1, 34), (34, 40))]
        assert torch.equal(torch.cat(found), expected_RV)
        expected_RV = torch.cat([step(alone, chunk(1, n, n + 1), "decode") for n in range(40, 44)])
        assert torch.equal(step(parts, chunk(1, 40, 44), "verify"), expected_RV)
        rows = together(chunk(0, 0, 2), chunk(1, 40, 44))
        assert torch.equal(step(whole, rows, "verify")[2:], expected_RV)
    for one, other, third in zip(alone[0].layers, parts[0].layers, whole[0].layers, strict=True):
        if isinstance(one, RecurrentLayer):
            assert isinstance(other, RecurrentLayer)
            assert isinstance(third, RecurrentLayer)
            own = [state[1] for state in one.states]
            assert_same([state[1] for state in other.states], own)
            assert_same([state[1] for state in third.states], own)


@names
@pytest.mark.parametrize("accepted", [0, 1, 3, 8])
def test_verify_leaves_the_state_of_decode(pack: Pack, name: str, accepted: int) -> None:
    one, other = (Runner.of(pack(name), 2) for _ in range(2))
    for runner in (one, other):
        read(runner, 0, 12, "prefill")
    found_RV = read(one, 12, 20, "verify")
    if accepted:
        expected_RV = read(other, 12, 12 + accepted, "decode")
        assert torch.equal(found_RV[:accepted], expected_RV)
    if accepted == 8:
        assert_same(states(one), states(other))
    # The rest of the draft is refused, and other tokens follow.
    then = [*TEXT[: 12 + accepted], *tokens(6, seed=3)]
    for start in (12 + accepted, 15 + accepted):
        span = (start, start + 3)
        assert torch.equal(read(one, *span, "decode", then), read(other, *span, "decode", then))
    assert_same(states(one), states(other))


@names
def test_a_sequence_is_the_same_among_sixteen(pack: Pack, name: str) -> None:
    decoder = pack(name)
    alone, among = Runner.of(decoder, 1), Runner.of(decoder, 16)
    lengths = [9 + slot % 5 for slot in range(16)]

    def step(rows: Any, phase: Phase) -> Tensor:
        return among.step(rows.token_R, rows.slot_R, rows.position_R, phase)

    order = [(7 * slot) % 16 for slot in range(16)]
    found = step(together(*(chunk(slot, 0, lengths[slot]) for slot in order)), "prefill")
    for turn in range(3):
        at = [lengths[slot] + turn for slot in range(16)]
        rows = together(*(chunk(slot, at[slot], at[slot] + 1) for slot in order))
        found = step(rows, "decode")
    for row, slot in enumerate(order):
        own, end = chunk(slot, 0, lengths[slot] + 3), lengths[slot]
        text = own.token_R.tolist()
        read(alone, 0, end, "prefill", text, slot=0)
        expected_RV = read(alone, end, end + 3, "decode", text, slot=0)
        assert torch.equal(found[row], expected_RV[-1])
        assert_same(states(among, slot), states(alone, 0))


@names
@pytest.mark.parametrize("position", [0, 1, 5, 11, 12, 13, 17, 22, 29])
def test_after_a_rewind_to_any_position_the_same_comes_again(
    pack: Pack, name: str, position: int
) -> None:
    # 12 tokens of prompt, 10 of an answer, 6 that are verified, 2 of an answer: read once as they
    # are, and once with a way back from their end.
    ways: list[tuple[int, int, Phase]] = [
        (0, 12, "prefill"),
        (12, 22, "decode"),
        (22, 28, "verify"),
        (28, 30, "decode"),
    ]
    one, other = (Runner.of(pack(name), 2) for _ in range(2))
    for start, end, phase in ways:
        read(one, start, end, phase)
    for start, end, phase in ways:
        if start < position:
            read(other, start, min(end, position), phase)
    then = [*TEXT[:position], *tokens(9, seed=5)]
    on: list[tuple[int, int, Phase]] = [
        (position, position + 1, "decode"),
        (position + 1, position + 5, "prefill"),
        (position + 5, position + 9, "verify"),
    ]
    for start, end, phase in on:
        assert torch.equal(read(one, start, end, phase, then), read(other, start, end, phase, then))
        assert_same(states(one), states(other))


@names
def test_a_slot_given_to_another_sequence_begins_anew(pack: Pack, name: str) -> None:
    one, fresh = (Runner.of(pack(name), 2) for _ in range(2))
    read(one, 0, 20, "prefill")
    read(one, 20, 24, "decode")
    text = tokens(20, seed=8)
    assert torch.equal(read(one, 0, 9, "prefill", text), read(fresh, 0, 9, "prefill", text))
    assert_same(states(one), states(fresh))


@names
@pytest.mark.parametrize("phase", ["prefill", "decode", "verify"])
def test_an_interrupted_step_is_undone(pack: Pack, name: str, phase: Phase, way: str) -> None:
    if way == "program":
        pytest.skip("hooks of modules interrupt; the next test interrupts the program")
    decoder = pack(name)
    one, other = (Runner.of(decoder, 2) for _ in range(2))
    for runner in (one, other):
        read(runner, 0, 9, "prefill")
        read(runner, 9, 13, "decode")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        handle = decoder.get_submodule("blocks.2.ffn").register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            read(one, 13, 14, phase)
        handle.remove()
    assert torch.equal(read(one, 13, 14, phase), read(other, 13, 14, phase))
    assert_same(states(one), states(other))


@pytest.mark.parametrize("phase", ["prefill", "decode", "verify"])
def test_an_interrupted_program_is_undone(pack: Pack, phase: Phase, way: str) -> None:
    if way == "modules":
        pytest.skip("only the program calls between layers")
    one, other = (Runner.of(pack("lfm2_moe"), 2) for _ in range(2))
    for runner in (one, other):
        read(runner, 0, 9, "prefill")

    def interrupt(_: Chosen) -> None:
        raise KeyboardInterrupt

    row = (torch.tensor(TEXT[9:10]), torch.tensor([1]), torch.tensor([9]), phase)
    with pytest.raises(KeyboardInterrupt):
        one.step(*row, routes=Routes(between=interrupt))
    assert torch.equal(read(one, 9, 10, phase), read(other, 9, 10, phase))
    assert_same(states(one), states(other))


def test_a_long_answer_is_read_again_from_its_copies(tmp_path: Any) -> None:
    # 600 tokens of an answer leave copies at 256 and 512; slot 0 goes back beside slot 1.
    tree = {**BASE, **FAMILIES["lfm2_moe"], "context": 700}
    decoder = packed(built(tree, width=32), tmp_path)
    text = tokens(640)
    one, other = (Runner.of(decoder, 2) for _ in range(2))
    for slot, end in ((1, 600), (0, 20)):
        read(one, 0, 8, "prefill", text, slot)
        read(one, 8, end, "decode", text, slot)
    assert one.state.histories is not None
    assert one.state.snapshot(1, 600).layers[0] is not None
    for slot, end in ((1, 530), (0, 17)):
        read(other, 0, 8, "prefill", text, slot)
        read(other, 8, end, "decode", text, slot)
    rows = (torch.tensor([3, 4]), torch.tensor([0, 1]), torch.tensor([17, 530]))
    assert torch.equal(one.step(*rows, "decode"), other.step(*rows, "decode"))
    assert_same(states(one), states(other))


@names
def test_a_context_becomes_texts_with_shared_beginnings(pack: Pack, name: str) -> None:
    for decoder, exact in ((pack(name), True), (build(name), False)):
        context = Context(decoder, part=7)
        text = tokens(30)
        context.become(text)
        for token in tokens(5, seed=2):
            context.read([token])
        for then in (text[:20], [*text[:19], 5, 6], [*text[:19], 5, 6], [*text[:3], 1, 2, 3]):
            found_V, expected_V = context.become(then), Context(decoder, part=7).become(then)
            if exact:
                assert torch.equal(found_V, expected_V)
            else:
                bound = 1e-5 * expected_V.abs().max().item()
                torch.testing.assert_close(found_V, expected_V, rtol=0, atol=bound)


@names
def test_answers_together_are_those_alone(pack: Pack, name: str) -> None:
    decoder = pack(name)
    prompts = [tokens(length, seed=length) for length in (5, 12, 9)]

    def answers(slots: int) -> dict[int, list[int]]:
        scheduler, waiting = Scheduler(Runner.of(decoder, slots)), list(enumerate(prompts))
        running: dict[Answer, int] = {}
        done: dict[int, list[int]] = {}
        while waiting or running:
            while waiting and len(running) < slots:
                number, prompt = waiting.pop(0)
                one = Answer.of(prompt, Sampling(temperature=1.0, seed=number), 12)
                scheduler.begin(one)
                running[one] = number
            for one in scheduler.advance():
                if one.finish is not None:
                    done[running.pop(one)] = one.tokens
        return done

    assert answers(3) == answers(1)


def test_rows_out_of_order_are_refused(pack: Pack) -> None:
    runner = Runner.of(pack("lfm2"), 2)
    with pytest.raises(ConfigError, match="slot 0 has a row at position 3 behind one at 1"):
        runner.step(torch.tensor([1, 2]), torch.tensor([0, 0]), torch.tensor([1, 3]), "prefill")
    with pytest.raises(ConfigError, match="position 1 of slot 0 lies beyond the 0 tokens"):
        runner.step(torch.tensor([1]), torch.tensor([0]), torch.tensor([1]), "decode")


@names
def test_every_byte_of_a_state_is_counted(name: str) -> None:
    config = build(name).config
    plan = CachePlan(config, 3, 7)
    state = plan.allocate()
    assert state.bytes == plan.bytes
    # Numbers of a layer's state, which is kept now and as 4 copies. Of a gated delta net: inputs of
    # the convolution, 2 sides of keys and one of values, and a matrix for each head.
    numbers = {
        "lfm2": 2 * 2 * 16,
        "lfm2_moe": 3 * 3 * 16,
        "qwen3_next": 3 * (3 * (2 * 2 * 6 + 4 * 5) + 4 * 6 * 5),
        "gated_delta_first": 2 * (1 * (2 * 3 * 17 + 3 * 18) + 3 * 17 * 18),
        # Inputs of the convolution, of all heads and two a group, and a matrix for each head.
        "granitemoehybrid": 3 * (3 * (4 * 7 + 2 * 2 * 5) + 4 * 7 * 5),
        "mamba2_first": 2 * (1 * (3 * 18 + 2 * 17) + 3 * 18 * 17),
    }
    assert bytes_of_states(config) == numbers[name] * 5 * 4
    # One layer attends, in bf16: 2 heads of keys and of values of 6 numbers.
    assert plan.bytes_of_position == 2 * 2 * (6 + 6)
    assert state.histories is not None
    memory = [one for one in vars(state.histories).values() if isinstance(one, Tensor)]
    assert sum(one.nbytes for one in memory) == 3 * 7 * bytes_of_text(config)
