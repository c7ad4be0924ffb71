"""Many sequences at once: each writes what it would write alone, whoever comes or goes."""

import pytest
from tests.engine.tiny_families import build, long_context, tokens
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan
from mixtura.engine.continuous_batch import ContinuousBatch
from mixtura.engine.generate import Writer
from mixtura.engine.runner import CHUNK, Runner
from mixtura.engine.sampling import Sampling
from mixtura.engine.sequence import Sequence
from mixtura.engine.steps import Routes
from mixtura.errors import ConfigError
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder
from mixtura.tokenizers.tokenizer import ByteTokenizer

GREEDY = Sampling(temperature=0)


class Noting(Runner):
    """Notes the phase and the rows of each step."""

    def __init__(self, decoder: Decoder, plan: CachePlan) -> None:
        super().__init__(decoder, plan)
        self.steps: list[tuple[Phase, int]] = []

    def step(
        self,
        token_R: Tensor,
        slot_R: Tensor,
        position_R: Tensor,
        phase: Phase,
        logit_row_N: Tensor | None = None,
        routes: Routes | None = None,
    ) -> Tensor:
        self.steps.append((phase, len(token_R)))
        return super().step(token_R, slot_R, position_R, phase, logit_row_N, routes)


def run(batch: ContinuousBatch) -> None:
    while batch.running:
        batch.advance()


def alone(decoder: Decoder, one: Sequence) -> list[int]:
    """What it writes in a batch of its own."""
    batch = ContinuousBatch(Runner.of(decoder, 1))
    again = batch.add(one.prompt, one.sampler.sampling, one.max_tokens, one.ends)
    run(batch)
    assert again.finish == one.finish
    return again.tokens


def ways(count: int) -> list[Sampling]:
    """Every other one greedy."""
    return [Sampling(temperature=0.9 * (n % 2), seed=n) for n in range(count)]


@pytest.mark.parametrize("family", ["olmoe", "phimoe"])
def test_sixteen_together_are_each_alone(family: str) -> None:
    decoder = build(family)
    batch = ContinuousBatch(Runner.of(decoder, 16))
    running = [
        batch.add(tokens(1 + 2 * n, seed=n), way, max_tokens=14, ends=frozenset({5}))
        for n, way in enumerate(ways(16))
    ]
    run(batch)
    for one in running:
        assert one.tokens == alone(decoder, one)
    # Some met an end of their own, and others went on.
    assert {one.finish for one in running} >= {"end", "max_tokens"}


def test_it_writes_what_a_writer_writes() -> None:
    decoder, prompt = build("olmoe"), tokens(9)
    for way in ways(4):
        batch = ContinuousBatch(Runner.of(decoder, 2, kv="fp32"))
        one = batch.add(prompt, way, 12)
        run(batch)
        stream = Writer(decoder, ByteTokenizer(), way).write(prompt, 12, ends=frozenset())
        list(stream)
        assert one.tokens == list(stream.result.tokens)


def test_who_joins_midway_finds_the_others_as_they_were() -> None:
    decoder = build("qwen3_moe")
    batch = ContinuousBatch(Runner.of(decoder, 3))
    running: list[Sequence] = []
    # Three at most: the fourth comes when the first, which wants the fewest tokens, has ended.
    waiting = [(tokens(3 + n, seed=n), way, 4 + 3 * n) for n, way in enumerate(ways(6))]
    while waiting or batch.running:
        if waiting and len(batch.running) < 3:
            running.append(batch.add(*waiting.pop(0)))
        batch.advance()
    assert [len(one.tokens) for one in running] == [4, 7, 10, 13, 16, 19]
    for one in running:
        assert one.tokens == alone(decoder, one)


def test_who_leaves_frees_a_slot_and_changes_nobody() -> None:
    decoder = build("qwen3_moe")
    batch = ContinuousBatch(Runner.of(decoder, 2))
    left, stayed = (batch.add(tokens(5, seed), GREEDY, 20) for seed in (1, 2))
    for _ in range(4):
        batch.advance()
    batch.leave(left)
    batch.leave(left)
    assert (left.finish, len(left.tokens)) == ("interrupted", 4)
    joined = batch.add(tokens(7, seed=3), GREEDY, 20)
    run(batch)
    assert joined.tokens == alone(decoder, joined)
    assert stayed.tokens == alone(decoder, stayed)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "finish", "written"),
    [
        (5, 7, "max_tokens", 7),
        # 45 tokens of prompt and 3 of answer fill the context of 48; one more needs no room.
        (45, 99, "length", 4),
        (48, 99, "length", 1),
        (48, 1, "max_tokens", 1),
    ],
)
def test_each_end_has_its_reason(prompt: int, max_tokens: int, finish: str, written: int) -> None:
    batch = ContinuousBatch(Runner.of(build("llama"), 1))
    one = batch.add(tokens(prompt), GREEDY, max_tokens)
    run(batch)
    assert (one.finish, len(one.tokens)) == (finish, written)
    assert batch.advance() == []


def test_an_end_is_no_part_of_the_answer() -> None:
    batch = ContinuousBatch(Runner.of(build("llama"), 1))
    first = batch.add(tokens(5), GREEDY, 6)
    run(batch)
    again = batch.add(tokens(5), GREEDY, 6, ends=frozenset({first.tokens[3]}))
    run(batch)
    assert again.finish == "end"
    assert again.tokens == first.tokens[: first.tokens.index(first.tokens[3])]


def test_a_long_prompt_is_read_in_chunks_of_its_own_beside_answers() -> None:
    decoder = long_context(2 * CHUNK + 40)
    runner = Noting(decoder, CachePlan(decoder.config, 3, 2 * CHUNK + 40))
    batch = ContinuousBatch(runner)
    short = batch.add(tokens(20), GREEDY, 6)
    batch.advance()
    long, other = batch.add(tokens(2 * CHUNK + 3), GREEDY, 3), batch.add(tokens(9), GREEDY, 3)
    run(batch)
    # The short one's answers in turn with the long one's chunks, of which the last leaves room.
    assert runner.steps[:7] == [
        ("prefill", 20),
        ("decode", 1),
        ("prefill", CHUNK),
        ("decode", 1),
        ("prefill", CHUNK),
        ("decode", 1),
        ("prefill", 3 + 9),
    ]
    for one in (short, long, other):
        assert one.tokens == alone(decoder, one)


def test_an_interrupted_step_can_be_taken_again() -> None:
    decoder = build("qwen3_moe")
    batch = ContinuousBatch(Runner.of(decoder, 2))
    running = [batch.add(tokens(4 + n, seed=n), way, 8) for n, way in enumerate(ways(2))]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    second = decoder.blocks[1].get_submodule("attention_norm")
    while batch.running:
        handle = second.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            batch.advance()
        handle.remove()
        batch.advance()
    for one in running:
        assert one.tokens == alone(decoder, one)


def test_what_cannot_be_is_refused_and_takes_no_slot() -> None:
    batch = ContinuousBatch(Runner.of(build("llama"), 2, context=32))
    for prompt, max_tokens, said in (
        ([], 3, "a prompt of no tokens"),
        ([1], 0, "max_tokens=0 must be 1 or more"),
        (tokens(33), 3, "the prompt of 33 tokens exceeds the context of 32 that was asked for"),
        ([1, 23], 3, r"token 23 must lie in 0\.\.22"),
    ):
        with pytest.raises(ConfigError, match=said):
            batch.add(prompt, GREEDY, max_tokens)
    for _ in range(2):
        batch.add([1], GREEDY, 3)
    with pytest.raises(ConfigError, match="3 sequences exceed the 2 slots that the cache was size"):
        batch.add([1], GREEDY, 3)
    run(batch)
    batch.add([1], GREEDY, 3)


def test_a_prompt_beyond_the_model_says_so() -> None:
    batch = ContinuousBatch(Runner.of(build("llama"), 1))
    with pytest.raises(ConfigError, match="prompt of 49 tokens exceeds the model's context of 48;"):
        batch.add(tokens(49), GREEDY, 1)
