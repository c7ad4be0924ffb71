"""What a recording holds of a text: sequences, positions, layers, rows.

B sequences, S positions, V vocabulary, K choices at most.
"""

from pathlib import Path

import numpy as np
import torch
from tests.tracing.traced_models import (
    decoder_of,
    forget_how_to_route,
    moe_of,
    padded,
    recorded,
    text,
    whole,
)
from torch import Tensor

from mixtura.models import State
from mixtura.trace import TraceReader, write_trace
from mixtura.tracing.model_trace import replay, trace_meta
from mixtura.tracing.record import Recorder


def test_positions_go_on_in_generation(path: Path) -> None:
    # Five tokens at once, then four one by one: positions 0 to 4, then 5, 6, 7 and 8 of each.
    decoder, tokens_BS = decoder_of(), text(2)

    def generated() -> Tensor:
        state = State.empty(decoder.config, 2, 9)
        parts = [tokens_BS[:, :5], *tokens_BS[:, 5:].split(1, 1)]
        return torch.cat([decoder(part, state=state).logits_BSV for part in parts], 1)

    before = recorded(decoder, path, generated)
    batch = whole(path)
    assert batch.sequence_T.tolist() == [0] * 5 + [1] * 5 + [0, 1] * 4
    assert batch.position_T.tolist() == [*range(5), *range(5), 5, 5, 6, 6, 7, 7, 8, 8]
    assert batch.id_T[:5].tolist() == tokens_BS[0, :5].tolist()
    forget_how_to_route(decoder)
    with TraceReader(path) as trace, torch.inference_mode():
        with replay(decoder, trace, [0, 1]):
            assert torch.equal(generated(), before)
        # The same sequences read at once, and the second one alone.
        with replay(decoder, trace, [0, 1]):
            torch.testing.assert_close(decoder(tokens_BS).logits_BSV, before)
        with replay(decoder, trace, [1]):
            torch.testing.assert_close(decoder(tokens_BS[1:]).logits_BSV, before[1:])


def test_what_longrope_reads_again_is_recorded_once(path: Path) -> None:
    # Past 6 tokens all keys turn otherwise, so the 7th pass reads 7 tokens and records one.
    scaling = {
        "kind": "longrope",
        "short": [1.0, 1.1, 1.3, 1.5],
        "long": [1.0, 2.0, 3.0, 4.0],
        "original_context": 6,
    }
    heads = {"heads": 2, "kv_heads": 1, "head_dim": 8, "rope_scaling": scaling}
    decoder, tokens_BS = decoder_of(attention=heads), text(2)
    valid_BS = torch.tensor([[True] * 5, [False] + [True] * 4])
    routed: list[Tensor] = []

    def generated() -> None:
        state = State.empty(decoder.config, 2, 9)
        output = decoder(tokens_BS[:, :5], valid_BS, state)
        for part in tokens_BS[:, 5:].split(1, 1):
            output = decoder(part, state=state)
            routed.append(output.moe[1].routing.chosen_N.view(2, -1, 2)[:, -1])
        assert output.logits_BSV.shape[1] == 1

    recorded(decoder, path, generated)
    batch = whole(path)
    # The second sequence begins with padding: 5 and 4 tokens, then 4 of each.
    assert batch.sequence_T.tolist() == [0] * 5 + [1] * 4 + [0, 1] * 4
    assert batch.position_T.tolist() == [*range(5), *range(4), 5, 4, 6, 5, 7, 6, 8, 7]
    assert batch.id_T[9:].tolist() == tokens_BS[:, 5:].T.flatten().tolist()
    chosen = batch.layers[1].chosen_N.reshape(-1, 2)[9:]
    assert chosen.tolist() == torch.stack(routed).flatten(0, 1).tolist()


def test_a_new_cache_begins_new_sequences_and_so_does_a_shortened_one(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text(1)
    first, second = (State.empty(decoder.config, 1, 9) for _ in range(2))

    def read() -> None:
        decoder(tokens_BS[:, :3], state=first)
        decoder(tokens_BS[:, 3:5], state=first)
        decoder(tokens_BS[:, :2], state=second)
        # Another pass came in between.
        decoder(tokens_BS[:, 5:6], state=first)
        first.length = 4
        decoder(tokens_BS[:, 4:7], state=first)
        decoder(tokens_BS[:, :1])

    recorded(decoder, path, read)
    batch = whole(path)
    assert batch.sequence_T.tolist() == [0] * 5 + [1] * 2 + [2] + [3] * 3 + [4]
    assert batch.position_T.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 4, 5, 6, 0]


def test_padding_is_left_out(path: Path) -> None:
    # Sequences of 9, 6 and 3 tokens in three rows of 9.
    decoder, tokens_BS = decoder_of(), text()
    recorded(decoder, path, lambda: decoder(tokens_BS, padded(tokens_BS)))
    batch = whole(path)
    assert batch.sequence_T.tolist() == [0] * 9 + [1] * 6 + [2] * 3
    assert batch.position_T.tolist() == [*range(9), *range(6), *range(3)]
    assert batch.id_T.tolist() == tokens_BS[padded(tokens_BS)].tolist()
    assert all(len(rows) == 18 for rows in batch.layers.values())
    assert (batch.layers[0].count_T == 2).all()


def test_a_token_may_have_no_expert(path: Path) -> None:
    decoder = decoder_of(moe_of("expert_choice"))
    recorded(decoder, path, lambda: decoder(text()))
    # Each of 4 experts takes ceil(9 * 2 / 4) = 5 of a sequence's 9 tokens: 3 * 4 * 5 rows.
    for rows in whole(path).layers.values():
        assert len(rows.chosen_N) == 60
        assert rows.count_T.min() < 2 < rows.count_T.max()
        # First choices come first.
        weight_TK = rows.by_choice(rows.weight_N, 4, 0)
        assert (np.diff(weight_TK, axis=1) <= 0).all()


def test_layers_and_probabilities_as_asked(path: Path) -> None:
    decoder, tokens_BS = decoder_of(layers=3), text()
    output = recorded(
        decoder, path, lambda: decoder(tokens_BS), layers=[2], probabilities="float32"
    )
    batch = whole(path)
    assert list(batch.layers) == [2]
    probs_TE = batch.layers[2].probs_TE
    assert probs_TE is not None
    assert torch.equal(torch.from_numpy(probs_TE), output.layers[2].routing.probs_TE)


def test_layers_keep_their_numbers_among_dense_ones(path: Path) -> None:
    placement = {"placement": {"every": 2}, "pyramid": [{"from_layer": 2, "num_experts": 6}]}
    decoder = decoder_of(moe_of("softmax_topk", **placement), layers=4, ffn_width=8)
    before = recorded(decoder, path, lambda: decoder(text()))
    with TraceReader(path) as trace:
        assert [(one.layer, one.num_experts) for one in trace.meta.layers] == [(1, 4), (3, 6)]
        with replay(decoder, trace, range(3)), torch.inference_mode():
            assert torch.equal(decoder(text()).logits_BSV, before.logits_BSV)


def test_groups_are_stated() -> None:
    (first, _) = trace_meta(decoder_of(moe_of("deepseek_v3")), "m").layers
    assert (first.num_groups, first.groups_kept, first.top_k) == (2, 1, 2)
    (first, _) = trace_meta(decoder_of(moe_of("expert_choice")), "m").layers
    assert (first.num_groups, first.groups_kept) == (1, 1)


def test_pairs_of_layer_and_routing_are_enough(path: Path) -> None:
    """What hooks on another library's model give."""
    decoder, tokens_BS = decoder_of(), text()
    with write_trace(path, trace_meta(decoder, "tiny", layers=[1])) as writer:
        recorder = Recorder(writer)
        recorder.domain = writer.domain_number("prose")
        recorder.begin(3)
        output = decoder(tokens_BS)
        for number, layer in enumerate(output.moe):
            recorder.take(number, layer.routing)
        recorder.end_pass(tokens_BS)
    batch = whole(path)
    routing = output.moe[1].routing
    assert batch.layers[1].chosen_N.tolist() == routing.chosen_N.tolist()
    assert set(batch.domain_T) == {0}
    assert routing.weight_N.requires_grad
