"""The engine's steps beside the decoder itself, for every family; rows of many sequences at once.

R rows, S positions, V vocabulary.
"""

from itertools import accumulate, pairwise

import pytest
import torch
from tests.engine.tiny_families import FAMILIES, build, leaky, tokens
from torch import Tensor

from mixtura.engine.cache_plan import KVKind
from mixtura.engine.runner import Runner
from mixtura.errors import ConfigError
from mixtura.kernels.phase import Phase
from mixtura.models import Decoder
from mixtura.models.historic import LstmMoE, LstmMoEConfig
from mixtura.models.recurrent_state import RecurrentLayer

LSTM = {"vocabulary": 9, "width": 8, "context": 8, "hidden": [4]}
# A slot that is not the first, so that nothing is right by accident.
SLOT = 2


def read_again(decoder: Decoder, text: list[int]) -> Tensor:
    """logits_SV by the decoder without a cache, in fp32."""
    with torch.no_grad():
        return decoder(torch.tensor([text])).logits_BSV[0]


def read(runner: Runner, text: list[int], start: int, end: int, phase: Phase = "prefill") -> Tensor:
    position_R = torch.arange(start, end)
    slot_R = torch.full_like(position_R, SLOT)
    return runner.step(torch.tensor(text[start:end]), slot_R, position_R, phase)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, over the largest of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def with_garbage(runner: Runner) -> Runner:
    """What nobody wrote is NaN, so that whoever reads it shows."""
    for layer in runner.state.layers:
        if isinstance(layer, RecurrentLayer):
            for memory in (*layer.states, *layer.copies):
                memory.fill_(torch.nan)
    for layer in (each.kv for each in runner.state.kv_layers):
        scales = (layer.key_scales, layer.value_scales)
        for kept in (layer.keys, layer.values, *scales):
            if kept is not None and kept.is_floating_point():
                kept.fill_(torch.nan)
    return runner


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", [[20], [7, 1, 9, 3]])
def test_a_prompt_and_twenty_steps_are_the_decoders(family: str, parts: list[int]) -> None:
    decoder, text = build(family), tokens(40)
    runner = with_garbage(Runner.of(decoder, 3, kv="fp32"))
    whole_SV = read_again(decoder, text)
    for start, end in pairwise(accumulate([*parts, *[1] * 20], initial=0)):
        phase = "decode" if start >= 20 else "prefill"
        found = read(runner, text, start, end, phase)
        # LongRoPE turns all keys by how long the text has become.
        expected_SV = read_again(decoder, text[:end]) if family == "phimoe" else whole_SV
        assert difference(found, expected_SV[start:end]) < 1e-4


# Of one decode step after a prompt of 30 tokens. Over all families and five texts the largest found
# were 0.0039 and 0.0064 of the largest logit.
@pytest.mark.parametrize("family", ["llama", "olmoe", "gpt_oss", "gemma3", "deepseek_v3"])
@pytest.mark.parametrize(("kv", "tolerance"), [("bf16", 0.006), ("int8", 0.01)])
def test_a_smaller_cache_costs_little(family: str, kv: KVKind, tolerance: float) -> None:
    decoder, text = build(family), tokens(31)
    runner = with_garbage(Runner.of(decoder, 3, kv=kv))
    read(runner, text, 0, 30)
    found = read(runner, text, 30, 31, "decode")[0]
    assert 0 < difference(found, read_again(decoder, text)[-1]) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_many_sequences_do_not_mix(family: str) -> None:
    decoder = build(family)
    runner = with_garbage(Runner.of(decoder, 3, kv="fp32"))
    texts = [tokens(length, seed) for seed, length in enumerate((11, 18, 3))]
    # Chunks of all three in one step, the slots in any order, then the rest of the longer two.
    for ends in ({2: (0, 2), 0: (0, 10), 1: (0, 9)}, {1: (9, 18), 0: (10, 11)}, {2: (2, 3)}):
        rows = [(slot, at) for slot, (start, end) in ends.items() for at in range(start, end)]
        slot_R, position_R = torch.tensor(rows).T
        token_R = torch.tensor([texts[slot][at] for slot, at in rows])
        found_RV = runner.step(token_R, slot_R, position_R, "prefill")
        for slot, (start, end) in ends.items():
            expected_RV = read_again(decoder, texts[slot][:end])[start:]
            assert difference(found_RV[slot_R == slot], expected_RV) < 1e-4


@pytest.mark.parametrize("family", ["half_dense", "deepseek_v3"])
@pytest.mark.parametrize("asked", [[], [4], [2, 0, 4]])
def test_only_the_rows_asked_for_are_answered(family: str, asked: list[int]) -> None:
    decoder, text = build(family), tokens(6)
    runner = with_garbage(Runner.of(decoder, 3, kv="fp32"))
    token_R, position_R = torch.tensor(text[:5]), torch.arange(5)
    slot_R = torch.full_like(position_R, SLOT)
    logit_row_N = torch.tensor(asked, dtype=torch.int64)
    found_NV = runner.step(token_R, slot_R, position_R, "prefill", logit_row_N)
    assert found_NV.shape == (len(asked), 23)
    whole_SV = read_again(decoder, text)
    torch.testing.assert_close(found_NV, whole_SV[logit_row_N], rtol=1e-4, atol=1e-5)
    # The others' keys and values were kept all the same.
    found_NV = read(runner, text, 5, 6, "decode")
    torch.testing.assert_close(found_NV[0], whole_SV[5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("expected", "reads"),
    [
        # The original context is 16. Ten tokens, the same ones turned anew, then the other ten.
        (0, [10, 10, 10]),
        (20, [10, 10]),
    ],
)
def test_a_text_that_is_known_to_be_long_is_read_once(expected: int, reads: list[int]) -> None:
    decoder, text = build("phimoe"), tokens(20)
    seen: list[int] = []
    norm = decoder.blocks[0].get_submodule("attention_norm")
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    runner = Runner.of(decoder, 3, kv="fp32")
    runner.expect(SLOT, expected)
    read(runner, text, 0, 10)
    found = read(runner, text, 10, 20)
    assert seen == reads
    assert difference(found, read_again(decoder, text)[10:]) < 1e-4


def test_a_slot_is_short_again_for_the_next_text() -> None:
    decoder, text = build("phimoe"), tokens(24)
    runner = Runner.of(decoder, 3, kv="fp32")
    runner.expect(SLOT, 24)
    read(runner, text, 0, 24)
    # A text that shares the first 8 tokens, and stays within 16.
    runner.expect(SLOT, 10)
    found = read(runner, text, 8, 10)
    assert difference(found, read_again(decoder, text[:10])[8:]) < 1e-4


def test_who_interrupts_a_second_reading_is_not_deceived() -> None:
    decoder, text = build("phimoe"), tokens(20)
    runner = Runner.of(decoder, 3, kv="fp32")
    read(runner, text, 0, 16)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # The first layer's keys are turned anew by then, the second's are not.
    handle = decoder.blocks[1].get_submodule("ffn").register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(runner, text, 16, 17)
    handle.remove()
    # Back within the original context, where keys of a short text would be right.
    found = read(runner, text, 15, 16, "decode")
    assert difference(found[0], read_again(decoder, text[:16])[-1]) < 1e-4


def test_a_decoder_in_training_goes_back_to_it() -> None:
    decoder = build("qwen3_moe").train()
    found = read(Runner.of(decoder, 3, kv="fp32"), tokens(5), 0, 5)
    assert decoder.training
    assert not found.requires_grad
    assert difference(found, read_again(decoder.eval(), tokens(5))) < 1e-4


@pytest.mark.parametrize(
    ("token", "slot", "position", "said"),
    [
        (23, 0, 0, r"token 23 must lie in 0\.\.22, the model's vocabulary"),
        (-1, 0, 0, r"token -1 must lie in 0\.\.22"),
        (0, 3, 0, r"slot 3 must lie in 0\.\.2, as the cache was sized"),
        (0, 0, 32, r"position 32 must lie in 0\.\.31, as the cache was sized"),
        (0, 0, -1, r"position -1 must lie in 0\.\.31"),
    ],
)
def test_rows_outside_are_refused(token: int, slot: int, position: int, said: str) -> None:
    runner = Runner.of(build("llama"), 3, context=32)
    with pytest.raises(ConfigError, match=said):
        runner.step(torch.tensor([token]), torch.tensor([slot]), torch.tensor([position]), "decode")


def test_models_that_it_cannot_run_are_refused() -> None:
    with pytest.raises(ConfigError, match="a LstmMoE, keeps no keys and values"):
        Runner.of(LstmMoE(LstmMoEConfig.parse(LSTM)), 1)
    with pytest.raises(ConfigError, match=r"no kernel on meta; move the model with .to\('cpu'\)"):
        Runner.of(build("llama").to("meta"), 1)
    with pytest.raises(ConfigError, match="router kind=expert_choice chooses by other tokens"):
        Runner.of(leaky(), 1)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_on_a_gpu_are_those_on_the_cpu(family: str) -> None:
    text = tokens(26)
    here = Runner.of(build(family), 3, kv="fp32")
    there = Runner.of(build(family).to("cuda"), 3, kv="fp32")
    assert there.state.device.type == "cuda"
    parts: list[tuple[int, int, Phase]] = [(0, 20, "prefill"), (20, 21, "decode")]
    for start, end, phase in [*parts, (21, 26, "verify")]:
        found, expected = (read(runner, text, start, end, phase) for runner in (there, here))
        assert found.device.type == "cpu"
        assert difference(found, expected) < 1e-4
