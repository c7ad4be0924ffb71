"""What cannot be recorded or replayed is refused by name.

B sequences, S positions, V vocabulary, K choices at most.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.tracing.traced_models import (
    CHOOSE_ALONE,
    VOCABULARY,
    decoder_of,
    moe_of,
    recorded,
    text,
    whole,
)

from mixtura.errors import ConfigError, DataError
from mixtura.models import Decoder, State
from mixtura.trace import TraceReader, write_trace
from mixtura.tracing.model_trace import replay, trace_meta
from mixtura.tracing.record import Recorder


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: decoder_of(layers=3), r"of layers \[0, 1\], and the model's .* are \[0, 1, 2\]"),
        (
            lambda: decoder_of(moe_of("softmax_topk", num_experts=5)),
            "layer 0 has 4 experts in the trace and 5 in the model",
        ),
        (
            lambda: decoder_of(moe_of("switch", top_k=1)),
            "layer 0 has 2 experts a token in the trace, and at most 1 in the model",
        ),
    ],
)
def test_a_trace_of_another_model_is_refused(
    path: Path, other: Callable[[], Decoder], words: str
) -> None:
    decoder = decoder_of()
    recorded(decoder, path, lambda: decoder(text()))
    model = other()
    with (
        TraceReader(path) as trace,
        pytest.raises(DataError, match=words),
        replay(model, trace, range(3)),
    ):
        model(text())


def test_another_text_is_refused(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text()
    recorded(decoder, path, lambda: decoder(tokens_BS))
    other_BS = tokens_BS.clone()
    other_BS[1, 4] = (other_BS[1, 4] + 1) % VOCABULARY
    there, here = int(tokens_BS[1, 4]), int(other_BS[1, 4])
    longer_BS = torch.cat([tokens_BS, tokens_BS[:, :1]], 1)
    for tokens, words in (
        (other_BS, f"position 4 of sequence 1 is token {there}, and .* was given token {here}"),
        (longer_BS, "sequence 0 has 9 tokens, and the model was given 10"),
        (tokens_BS[:2], "3 sequences are replayed, and the model was given 2"),
    ):
        with (
            TraceReader(path) as trace,
            pytest.raises(DataError, match=words),
            replay(decoder, trace, range(3)),
        ):
            decoder(tokens)
    with (
        TraceReader(path) as trace,
        pytest.raises(DataError, match="has no sequence 3"),
        replay(decoder, trace, [3]),
    ):
        pass


def test_going_on_past_the_end_is_refused(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text(1)
    recorded(decoder, path, lambda: decoder(tokens_BS))
    with TraceReader(path) as trace, replay(decoder, trace, [0]):
        state = State.empty(decoder.config, 1, 12)
        decoder(tokens_BS, state=state)
        with pytest.raises(DataError, match=r"sequence 0 has 9 tokens, .* was given 10"):
            decoder(tokens_BS[:, :1], state=state)


@pytest.mark.parametrize("name", sorted(CHOOSE_ALONE))
def test_a_router_that_cannot_weigh_given_experts_is_refused(path: Path, name: str) -> None:
    decoder = decoder_of(moe_of(name))
    recorded(decoder, path, lambda: decoder(text()))
    words = f"weights=recomputed: layer 0's router, kind={name}, cannot weigh"
    with (
        TraceReader(path) as trace,
        pytest.raises(ConfigError, match=words),
        replay(decoder, trace, range(3), "recomputed"),
    ):
        pass


def test_fewer_experts_than_the_router_weighs_are_refused(path: Path) -> None:
    # Recorded with a variable number of experts, weighed by a router that shares out one weight.
    decoder = decoder_of(moe_of("top_p", top_k=2))
    recorded(decoder, path, lambda: decoder(text()))
    assert (whole(path).layers[0].count_T == 1).any()
    other = decoder_of(moe_of("softmax_topk"))
    with (
        TraceReader(path) as trace,
        pytest.raises(ConfigError, match="layer 0 has tokens of fewer experts"),
        replay(other, trace, range(3), "recomputed"),
    ):
        other(text())


def test_a_dense_model_and_a_dense_layer_are_refused() -> None:
    dense = decoder_of(ffn_width=8).config.model_copy(update={"moe": None}).build()
    with pytest.raises(ConfigError, match="tiny has no MoE layer"):
        trace_meta(dense, "tiny")
    with pytest.raises(ConfigError, match="layer 7 of tiny is no MoE layer; these are 0, 1"):
        trace_meta(decoder_of(), "tiny", layers=[1, 7])


def test_a_recorder_used_wrongly_says_so(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text()
    routings = [layer.routing for layer in decoder(tokens_BS).moe]
    with write_trace(path, trace_meta(decoder, "tiny")) as writer:
        recorder = Recorder(writer)
        recorder.take(0, routings[0])
        with pytest.raises(DataError, match="layer 0 was recorded twice in one pass"):
            recorder.take(0, routings[0])
        with pytest.raises(DataError, match="layer 1 gave no routing in this pass"):
            recorder.end_pass(tokens_BS)
        for number, routing in enumerate(routings):
            recorder.take(number, routing)
        with pytest.raises(DataError, match=r"a pass of 3 sequences .* 0 were begun"):
            recorder.end_pass(tokens_BS)
        recorder.begin(2)
        for number, routing in enumerate(routings):
            recorder.take(number, routing)
        with pytest.raises(DataError, match="layer 0 routed 27 tokens in a pass of 18"):
            recorder.end_pass(tokens_BS[:2])
        other = decoder_of(moe_of("softmax_topk", num_experts=5))
        with pytest.raises(DataError, match="layer 0 has 5 experts, and the trace is of 4"):
            recorder.take(0, other(tokens_BS).moe[0].routing)


def test_probabilities_that_a_router_does_not_have_are_refused(path: Path) -> None:
    decoder = decoder_of(moe_of("hash"))
    words = "layer 0: probabilities are to be recorded, and this router gives none"
    with pytest.raises(DataError, match=words):
        recorded(decoder, path, lambda: decoder(text()), probabilities="float16")
    assert not path.exists()
