"""Decoding from a state equals the whole. B sequences, S positions, V vocabulary."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig, State

MOE: dict[str, Any] = {"num_experts": 4, "top_k": 2, "expert_width": 8}
BASE: dict[str, Any] = {
    "layers": 2,
    "width": 16,
    "vocabulary": 19,
    "context": 12,
    "attention": {"heads": 4, "kv_heads": 2, "head_dim": 6},
    "ffn_width": 24,
    "moe": MOE,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied_head": True},
    "one_kv_head": {"attention": {"heads": 3, "kv_heads": 1, "head_dim": 4}},
    "no_groups": {"attention": {"heads": 2, "kv_heads": 2, "head_dim": 8}},
    "dense": {"moe": None},
    "biased": {"moe": {**MOE, "router": {"kind": "sigmoid_topk"}, "shared_width": 8}},
    "mixed": {"moe": {**MOE, "placement": {"every": 2}, "residual_width": 8}},
}
TOKENS_BS = torch.randint(19, (2, 12), generator=torch.Generator().manual_seed(0))


def build(**fields: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig.parse({**BASE, **fields})).eval()


def in_chunks(
    decoder: Decoder,
    tokens_BS: Tensor,
    chunks: list[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    state = State.empty(decoder.config, tokens_BS.shape[0], 12, dtype)
    with torch.no_grad():
        parts = [decoder(part_BS, state=state).logits_BSV for part_BS in tokens_BS.split(chunks, 1)]
    assert state.length == sum(chunks)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [[1] * 12, [12], [5, 1, 1, 4, 1], [1, 11]])
def test_in_pieces_equals_the_whole(kind: str, chunks: list[int]) -> None:
    decoder = build(**KINDS[kind])
    whole = decoder(TOKENS_BS).logits_BSV
    found = in_chunks(decoder, TOKENS_BS, chunks)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_any_pieces_equal_the_whole(chunks: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens_BS = torch.randint(19, (1, sum(chunks)), generator=generator)
    decoder = build()
    found = in_chunks(decoder, tokens_BS, chunks)
    torch.testing.assert_close(found, decoder(tokens_BS).logits_BSV, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["drop", "reroute"])
def test_generation_is_dropless(policy: str) -> None:
    tight = build(moe={**MOE, "capacity": {"policy": policy, "factor": 0.3}})
    loose = build()
    whole = loose(TOKENS_BS).logits_BSV
    assert not torch.allclose(tight(TOKENS_BS).logits_BSV, whole, atol=1e-3)
    for chunks in ([12], [1] * 12):
        found = in_chunks(tight, TOKENS_BS, chunks)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    output = tight(TOKENS_BS, state=State.empty(tight.config, 2, 12))
    assert not any(layer.routing.dropped_N.any() for layer in output.moe)


def test_a_new_cache_holds_nothing() -> None:
    decoder = build()
    state = State.empty(decoder.config, slots=3, capacity=5)
    assert (state.length, state.capacity, len(state.layers)) == (0, 5, 2)
    # Keys and values of 2 heads of 6 a layer.
    kv = state.kv_layers[0].kv
    assert [kept.shape for kept in (kv.keys, kv.values)] == [(3, 2, 5, 6)] * 2


def test_two_sequences_in_one_batch_do_not_mix() -> None:
    decoder = build()
    together = in_chunks(decoder, TOKENS_BS, [4, 8])
    for sequence in range(2):
        alone = in_chunks(decoder, TOKENS_BS[sequence : sequence + 1], [4, 8])
        torch.testing.assert_close(together[sequence], alone[0], rtol=1e-4, atol=1e-5)


def test_a_full_cache_is_refused_and_stays_usable() -> None:
    decoder = build()
    state = State.empty(decoder.config, 2, capacity=6)
    with torch.no_grad():
        decoder(TOKENS_BS[:, :5], state=state)
        with pytest.raises(ConfigError, match=r"7 positions exceed the cache's 6; shorten"):
            decoder(TOKENS_BS[:, 5:7], state=state)
        assert state.length == 5
        last = decoder(TOKENS_BS[:, 5:6], state=state).logits_BSV
    whole = decoder(TOKENS_BS[:, :6]).logits_BSV
    torch.testing.assert_close(last[:, 0], whole[:, 5], rtol=1e-4, atol=1e-5)


def test_cached_positions_count_towards_the_context() -> None:
    decoder = build()
    state = State.empty(decoder.config, 2, capacity=20)
    with torch.no_grad():
        decoder(TOKENS_BS, state=state)
        with pytest.raises(ConfigError, match="13 tokens exceeds the model's context of 12"):
            decoder(TOKENS_BS[:, :1], state=state)


def test_a_cache_for_another_batch_is_refused() -> None:
    # Written into a state for two, one sequence would be copied into both.
    decoder = build()
    state = State.empty(decoder.config, slots=2, capacity=12)
    with torch.no_grad(), pytest.raises(AssertionError, match="one sequence"):
        decoder(TOKENS_BS[:1], state=state)


def test_a_bf16_decoder_with_a_bf16_cache() -> None:
    decoder = build().bfloat16()
    whole = decoder(TOKENS_BS).logits_BSV
    found = in_chunks(decoder, TOKENS_BS, [6, 1, 5], dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert (found - whole).abs().mean() < 0.05


def test_a_cache_under_autocast() -> None:
    decoder = build()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = in_chunks(decoder, TOKENS_BS, [6, 1, 5])
        whole = decoder(TOKENS_BS).logits_BSV
    assert (found - whole).abs().mean() < 0.05


LONGROPE = {
    "kind": "longrope",
    "short": [1.0, 1.2, 1.5],
    "long": [1.0, 3.0, 6.0],
    "original_context": 6,
    "short_amplitude": 1.1,
    "long_amplitude": 1.4,
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 12, [4, 1, 4, 3], [6, 6], [9, 3]])
def test_longrope_turns_all_keys_anew_past_the_original_context(
    chunks: list[int], padded: bool
) -> None:
    # As each text read from its beginning: short factors up to 6 positions, long ones from the 7th.
    heads = {**BASE["attention"], "rope_scaling": LONGROPE}
    decoder = build(attention=heads)
    valid_BS = torch.ones_like(TOKENS_BS, dtype=torch.bool)
    valid_BS[1, :2] = not padded
    state = State.empty(decoder.config, 2, 12)
    with torch.no_grad():
        for end, new in zip(accumulate(chunks), chunks, strict=True):
            part = slice(end - new, end)
            found = decoder(TOKENS_BS[:, part], valid_BS[:, part], state).logits_BSV
            whole = decoder(TOKENS_BS[:, :end], valid_BS[:, :end]).logits_BSV
            shown = valid_BS[:, part]
            assert state.length == end
            torch.testing.assert_close(found[shown], whole[:, part][shown], rtol=1e-4, atol=1e-5)
        # A text that goes on from the first 4 positions is short again.
        state.length = 4
        found = decoder(TOKENS_BS[:, 4:5], valid_BS[:, 4:5], state).logits_BSV
        whole = decoder(TOKENS_BS[:, :5], valid_BS[:, :5]).logits_BSV
    torch.testing.assert_close(found, whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_a_snapshot_is_a_place_to_go_back_to() -> None:
    decoder = build()
    state = State.empty(decoder.config, 2, 12)
    with torch.no_grad():
        decoder(TOKENS_BS[:, :5], state=state)
        place = state.snapshot(0, state.length)
        expected = decoder(TOKENS_BS[:, 5:9], state=state).logits_BSV
        state.length = state.rewind(place)
        # What came since is forgotten, whatever it was.
        decoder(TOKENS_BS[:, 7:12], state=state)
        state.length = state.rewind(place)
        assert torch.equal(decoder(TOKENS_BS[:, 5:9], state=state).logits_BSV, expected)


def test_an_interruption_between_layers_leaves_the_length() -> None:
    decoder = build()
    state = State.empty(decoder.config, 2, 12)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        decoder(TOKENS_BS[:, :5], state=state)
        handle = decoder.blocks[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder(TOKENS_BS[:, 8:], state=state)
        handle.remove()
        assert state.length == 5
        found = decoder(TOKENS_BS[:, 5:], state=state).logits_BSV
    torch.testing.assert_close(found, decoder(TOKENS_BS).logits_BSV[:, 5:], rtol=1e-4, atol=1e-5)
