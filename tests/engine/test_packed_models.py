"""Packed models through the engine: a row's numbers are its own, to the bit.

R rows, V vocabulary.
"""

from collections.abc import Callable

import pytest
import torch
from tests.engine.packed_families import packed
from tests.engine.tiny_families import build, tokens
from torch import Tensor

from mixtura.engine.cache_plan import CachePlan
from mixtura.engine.context import Context
from mixtura.engine.continuous_batch import ContinuousBatch
from mixtura.engine.generate import Writer
from mixtura.engine.runner import Runner, _say_once
from mixtura.engine.sampling import Sampling
from mixtura.engine.sequence import Sequence
from mixtura.errors import ConfigError
from mixtura.kernels.native import native
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder
from mixtura.tokenizers.tokenizer import ByteTokenizer

GREEDY = Sampling(temperature=0)
FAMILIES = ["llama3_tied", "gemma3", "qwen2_moe", "gpt_oss", "phimoe", "deepseek_v3"]
Pack = Callable[[str], Decoder]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A tiny family in 8 bits."""
    made: dict[str, Decoder] = {}

    def pack(family: str) -> Decoder:
        if family not in made:
            decoder = build(family, width=32)
            made[family] = packed(decoder, tmp_path_factory.mktemp("packed"))
        return made[family]

    return pack


needs_kernels = pytest.mark.skipif(
    native() is None, reason="without compiled kernels torch adds as its processor likes"
)


def logits_of(runner: Runner, texts: dict[int, list[int]], start: int, phase: Phase) -> Tensor:
    """logits_RV of the tokens from `start` on, all slots in one step."""
    rows = [
        (token, slot, at)
        for slot, text in texts.items()
        for at, token in enumerate(text)
        if at >= start
    ]
    token_R, slot_R, position_R = torch.tensor(rows).T
    return runner.step(token_R, slot_R, position_R, phase)


@needs_kernels
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fused", [False, None])
def test_a_row_is_the_same_to_the_bit_among_others(
    pack: Pack, family: str, fused: bool | None
) -> None:
    decoder = pack(family)
    texts = {slot: tokens(8, seed=slot) for slot in range(20)}
    together, alone = (
        Runner(decoder, CachePlan(decoder.config, slots, 48), fused) for slots in (20, 1)
    )
    prompts = {slot: text[:7] for slot, text in texts.items()}
    read_RV = logits_of(together, prompts, 0, "prefill").unflatten(0, (20, 7))
    next_RV = logits_of(together, texts, 7, "decode")
    for slot in (0, 3, 16, 19):
        assert torch.equal(logits_of(alone, {0: texts[slot][:7]}, 0, "prefill"), read_RV[slot])
        assert torch.equal(logits_of(alone, {0: texts[slot]}, 7, "decode")[0], next_RV[slot])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_read_as_the_packed_decoder_reads_it(pack: Pack, family: str) -> None:
    decoder, text = pack(family), tokens(12)
    found_RV = logits_of(Runner.of(decoder, 1, kv="fp32"), {0: text}, 0, "prefill")
    with torch.no_grad():
        expected_RV = decoder(torch.tensor([text])).logits_BSV[0]
    # Attention adds in another order, and a quantised activation may fall on the other side.
    assert (found_RV - expected_RV).abs().max() < 0.02 * expected_RV.abs().max()


def test_a_program_that_is_asked_for_is_there_or_refused(pack: Pack) -> None:
    plain = build("llama")
    with pytest.raises(ConfigError, match="no program expresses this decoder: "):
        Runner(plain, CachePlan(plain.config, 1, 48), fused=True)
    if native() is None:
        pytest.skip("there are no compiled kernels here")
    packed, text = pack("qwen2_moe"), {0: tokens(9)}
    fused, modules = (
        Runner(packed, CachePlan(packed.config, 1, 48), fused) for fused in (True, False)
    )
    found_RV = logits_of(fused, text, 0, "decode")
    torch.testing.assert_close(
        found_RV, logits_of(modules, text, 0, "decode"), rtol=1e-3, atol=1e-4
    )


def test_a_packed_decoder_without_a_program_says_so_once(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    if native() is None:
        pytest.skip("there are no compiled kernels here")
    _say_once.cache_clear()
    for _ in range(2):
        Runner.of(pack("half_dense"), 1)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        "no native program expresses this packed decoder (a residual branch beside experts), so "
        "its modules run one by one"
    )


@needs_kernels
def test_a_context_goes_through_the_engine(pack: Pack) -> None:
    decoder, text = pack("qwen2_moe"), tokens(9)
    context, runner = Context(decoder), Runner.of(decoder, 1)
    expected_RV = logits_of(runner, {0: text[:8]}, 0, "prefill")
    assert torch.equal(context.become(text[:8]), expected_RV[-1])
    assert torch.equal(context.read(text[8:]), logits_of(runner, {0: text}, 8, "decode")[0])
    # Of a text that shares six tokens, two are read.
    other = [*text[:6], 3, 1]
    fresh_RV = logits_of(runner, {0: other}, 0, "prefill")
    assert torch.equal(context.become(other), fresh_RV[-1])
    assert context.tokens == other


def test_sixteen_together_write_what_each_writes_alone(pack: Pack) -> None:
    decoder = pack("qwen2_moe")
    batch = ContinuousBatch(Runner.of(decoder, 16))
    running: list[Sequence] = [
        batch.add(tokens(1 + 2 * n, seed=n), Sampling(temperature=n % 2, seed=n), 12)
        for n in range(16)
    ]
    while batch.running:
        batch.advance()
    for one in running:
        way = one.sampler.sampling
        stream = Writer(decoder, ByteTokenizer(), way).write(one.prompt, 12, ends=frozenset())
        list(stream)
        assert list(stream.result.tokens) == one.tokens
