"""Held-out text as the routers see it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mixtura.insight.sample import choices_of, read, spread_windows, token_texts
from mixtura.insight.specialisation import specialisation
from mixtura.models import Decoder, DecoderConfig
from mixtura.moe import Routing
from mixtura.tokenizers import ByteTokenizer
from mixtura.tracing.record import layer_rows


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Three layers, of which the first is dense."""
    torch.manual_seed(0)
    tree = {
        "layers": 3,
        "width": 16,
        "vocabulary": 32,
        "context": 16,
        "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
        "ffn_width": 16,
        "moe": {
            "num_experts": 4,
            "top_k": 2,
            "expert_width": 8,
            "placement": {"first_dense": 1},
        },
    }
    return Decoder(DecoderConfig.parse(tree))


@pytest.fixture(scope="module")
def tokens() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 32, 40)


def test_a_window_reads_as_the_decoder_does(decoder: Decoder, tokens: NDArray[np.int64]) -> None:
    reading = read(decoder, tokens, 16)
    decoder.eval()
    with torch.inference_mode():
        output = decoder(torch.from_numpy(tokens[None, 16:32]))
        nats = F.cross_entropy(
            output.logits_BSV[0, :-1], torch.from_numpy(tokens[17:32]), reduction="none"
        )
    assert [choices.layer for choices in reading.layers] == [1, 2]
    for choices, moe in zip(reading.layers, output.moe, strict=True):
        chosen_TK = moe.routing.chosen_N.view(16, 2).numpy()
        np.testing.assert_array_equal(choices.chosen_TK[16:32], chosen_TK)
        assert choices.probs_TE is not None
        np.testing.assert_allclose(choices.probs_TE[16:32], moe.routing.probs_TE, rtol=1e-5)
    np.testing.assert_allclose(reading.bits_T[17:32], nats / np.log(2), rtol=1e-5)
    # 40 tokens are windows of 16, 16 and 8, each with a first token that nothing comes before.
    assert np.flatnonzero(np.isnan(reading.bits_T)).tolist() == [0, 16, 32]


def test_with_a_stride_only_the_first_token_has_nothing_before_it(
    decoder: Decoder, tokens: NDArray[np.int64]
) -> None:
    reading = read(decoder, tokens, 16, 8)
    whole, second = read(decoder, tokens[:16], 16), read(decoder, tokens[8:24], 16)
    assert len(reading.bits_T) == len(reading.layers[0].first_T) == 40
    assert np.flatnonzero(np.isnan(reading.bits_T)).tolist() == [0]
    # Tokens 0 to 15 are the first window's, 16 to 23 the second half of the window from 8.
    np.testing.assert_array_equal(reading.layers[1].first_T[:16], whole.layers[1].first_T)
    np.testing.assert_array_equal(reading.layers[1].first_T[16:24], second.layers[1].first_T[8:])


@pytest.mark.parametrize(("length", "stride"), [(1, 4), (7, 8), (16, 5), (17, 16), (33, 3)])
def test_every_token_is_read_once(decoder: Decoder, length: int, stride: int) -> None:
    reading = read(decoder, np.zeros(length, np.int64), 16, stride)
    assert {len(choices.first_T) for choices in reading.layers} == {length}
    assert len(reading.bits_T) == length


def test_probabilities_can_be_left_out(decoder: Decoder, tokens: NDArray[np.int64]) -> None:
    assert {c.probs_TE is None for c in read(decoder, tokens, 16, probs=False).layers} == {True}


def test_a_decoder_in_training_stays_in_training(decoder: Decoder) -> None:
    decoder.train()
    read(decoder, np.zeros(4, np.int64), 16)
    assert decoder.training


def test_rows_in_any_order_become_choices_of_tokens() -> None:
    # Three tokens: 0 has experts 2 then 0, of which 0 had no room; 1 has expert 1; 2 has none.
    routing = Routing(
        token_N=torch.tensor([1, 0, 0]),
        choice_N=torch.tensor([0, 1, 0]),
        chosen_N=torch.tensor([1, 0, 2]),
        expert_N=torch.tensor([1, 3, 2]),
        weight_N=torch.tensor([1.0, 0.0, 0.75]),
        logits_TE=None,
        probs_TE=None,
        valid_T=torch.ones(3, dtype=torch.bool),
        num_experts=3,
    )
    choices = choices_of(layer_rows(routing), layer=5, num_experts=3)
    assert choices.chosen_TK.tolist() == [[2, 0], [1, -1], [-1, -1]]
    assert choices.computed_TK.tolist() == [[2, -1], [1, -1], [-1, -1]]
    assert choices.weight_TK.tolist() == [[0.75, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert choices.first_T.tolist() == [2, 1, -1]


def with_router(router: dict[str, Any], top_k: int) -> Decoder:
    torch.manual_seed(0)
    tree = {
        "layers": 1,
        "width": 16,
        "vocabulary": 32,
        "context": 16,
        "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
        "moe": {"num_experts": 4, "top_k": top_k, "expert_width": 8, "router": router},
    }
    return Decoder(DecoderConfig.parse(tree)).eval()


# Above a threshold of 0.6 a token has one expert or none.
NONE_FOR_SOME: dict[str, tuple[str | None, float, dict[str, Any]]] = {
    "expert_threshold": ("threshold_E", 0.6, {}),
    "batchwise": ("log_threshold", math.log(0.6), {}),
    "top_p": (None, 0.0, {"p": 0.7}),
}


@pytest.mark.parametrize("kind", NONE_FOR_SOME)
def test_a_token_without_an_expert_counts_for_none(kind: str, tokens: NDArray[np.int64]) -> None:
    name, value, more = NONE_FOR_SOME[kind]
    decoder = with_router({"kind": kind, **more}, top_k=3 if more else 2)
    with torch.no_grad():
        for part, tensor in decoder.state_dict().items():
            if name is not None and part.endswith(name):
                tensor.fill_(value)
            elif part.endswith("router.weight"):
                tensor.normal_(std=0.5)
        output = decoder(torch.from_numpy(tokens[None, :16]))
    (moe,) = output.moe
    experts: list[list[int]] = [[] for _ in range(16)]
    for token, expert in zip(
        moe.routing.token_N.tolist(), moe.routing.chosen_N.tolist(), strict=True
    ):
        experts[token] += [expert] if expert < 4 else []
    (choices,) = read(decoder, tokens[:16], 16).layers
    assert [[e for e in row if e != -1] for row in choices.chosen_TK.tolist()] == experts
    fewest = min(map(len, experts))
    assert (fewest == 0) == (not more)
    assert len({len(row) for row in experts}) > 1
    # Two domains, token by token in turn: what has no expert is in neither row.
    counts_DE = specialisation(np.arange(16) % 2, choices.first_T, 2, 4).counts_DE
    for domain in range(2):
        first = [row[0] for row in experts[domain::2] if row]
        assert counts_DE[domain].tolist() == [first.count(expert) for expert in range(4)]


def test_windows_are_spread_over_the_text() -> None:
    # 100 tokens hold ten windows of ten; three of them begin at 0, 45 and 90.
    assert spread_windows(100, 10, 3) == [0, 45, 90]
    assert spread_windows(25, 10, 99) == [0, 15]
    assert spread_windows(5, 10, 99) == [0]


def test_half_a_character_has_no_text_of_its_own() -> None:
    tokenizer = ByteTokenizer()
    assert token_texts(tokenizer, np.array(tokenizer.encode("é\n"))) == ["", "é", "\n"]
    # Cut off in the middle of a character: shown as what it is, once.
    assert token_texts(tokenizer, np.array(tokenizer.encode("aé")[:-1])) == ["a", "\ufffd"]
    assert token_texts(tokenizer, np.array([], np.int64)) == []
