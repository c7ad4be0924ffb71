"""What a model did is recorded, and replayed gives the same logits, bit for bit.

B sequences, S positions, V vocabulary, K choices at most.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixtura.errors import ConfigError, DataError
from mixtura.models import Decoder, DecoderConfig, KVCache, LanguageModel, LstmMoEConfig
from mixtura.models.tracing import record, replay, trace_meta
from mixtura.moe import MoE, MoEConfig
from mixtura.moe.layer import moe_layers
from mixtura.moe.record import Recorder
from mixtura.moe.replay import replay as replay_layers
from mixtura.moe.routers import RouterConfig
from mixtura.trace import TraceBatch, TracedLayer, TraceMeta, TraceReader, write_trace

VOCABULARY = 17

# Every kind of router, in the layers of a decoder; `expert_choice` with its leak accepted.
ROUTERS: dict[str, dict[str, Any]] = {
    "softmax_topk": {},
    "topk_softmax": {},
    "switch": {"top_k": 1},
    "sigmoid_topk": {},
    "noisy_topk": {},
    "gshard": {},
    "dbrx": {},
    "top_p": {"top_k": 3},
    "sparse_mixer": {},
    "deepseek_v2": {"router": {"groups": 2, "groups_kept": 1}},
    "deepseek_v3": {"router": {"groups": 2, "groups_kept": 1}},
    "hierarchical": {
        "router": {
            "groups": 2,
            "outer": {"kind": "softmax_topk", "renormalise": False},
            "inner": {"kind": "softmax_topk"},
        }
    },
    "expert_choice": {"router": {"accept_leak": True}},
    "expert_threshold": {},
    "batchwise": {},
    "base": {"top_k": 1},
    "sinkhorn": {},
    "hash": {},
    "reinforce": {"top_k": 1},
}
# Rows in another order than token by token, whose sums may round otherwise.
ANY_ORDER = {"expert_choice"}
# What weighs only experts of its own choice.
CHOOSE_ALONE = {"hierarchical", "expert_choice", "hash", "sparse_mixer"}


def moe_of(name: str, **fields: Any) -> dict[str, Any]:
    given = ROUTERS[name]
    router = {"kind": name, **given.get("router", {})}
    tree = {"num_experts": 4, "top_k": 2, "expert_width": 8, **given, "router": router}
    return {**tree, **fields}


def decoder_of(moe: dict[str, Any] | None = None, **fields: Any) -> Decoder:
    torch.manual_seed(0)
    tree = {
        "layers": 2,
        "width": 16,
        "vocabulary": VOCABULARY,
        "context": 32,
        "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
        "moe": moe_of("softmax_topk") if moe is None else moe,
    }
    return DecoderConfig.parse({**tree, **fields}).build().eval()


def text(sequences: int = 3, length: int = 9, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (sequences, length), generator=generator)


def padded(tokens_BS: Tensor) -> Tensor:
    """valid_BS: each sequence three tokens shorter than the one before."""
    length_B = tokens_BS.shape[1] - 3 * torch.arange(len(tokens_BS))
    return torch.arange(tokens_BS.shape[1]) < length_B[:, None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.parquet"


def recorded(model: LanguageModel, path: Path, run: Callable[[], Any], **fields: Any) -> Any:
    """What `run` gave while it was recorded."""
    with (
        write_trace(path, trace_meta(model, "tiny", **fields)) as writer,
        record(model, writer),
        torch.inference_mode(),
    ):
        return run()


def forget_how_to_route(model: nn.Module) -> None:
    """Other gates, so that only a replay can route as before."""
    torch.manual_seed(99)
    with torch.no_grad():
        for layer in moe_layers(model):
            for parameter in layer.router.parameters():
                parameter.normal_()


def whole(path: Path) -> TraceBatch:
    with TraceReader(path) as trace:
        return TraceBatch.joined(list(trace.batches()))


def test_the_table_names_every_kind() -> None:
    union, _ = get_args(RouterConfig)
    assert {config.model_fields["kind"].default for config in get_args(union)} == ROUTERS.keys()


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_is_recorded_and_replayed(path: Path, name: str) -> None:
    decoder, tokens_BS = decoder_of(moe_of(name)), text()
    valid_BS = padded(tokens_BS)
    before = recorded(decoder, path, lambda: decoder(tokens_BS, valid_BS))
    forget_how_to_route(decoder)
    with TraceReader(path) as trace, replay(decoder, trace, range(3)), torch.inference_mode():
        after = decoder(tokens_BS, valid_BS)
    if name in ANY_ORDER:
        torch.testing.assert_close(after.logits_BSV, before.logits_BSV)
    else:
        assert torch.equal(after.logits_BSV, before.logits_BSV)
    # Without the replay it would route otherwise, but for what has no gate.
    if name != "hash":
        assert not torch.equal(decoder(tokens_BS, valid_BS).logits_BSV, before.logits_BSV)


@given(
    name=st.sampled_from(sorted(ROUTERS.keys() - ANY_ORDER)),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
)
@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_replayed_bit_for_bit(
    path: Path, name: str, lengths: list[int], seed: int
) -> None:
    decoder, tokens_BS = decoder_of(moe_of(name)), text(len(lengths), max(lengths), seed)
    valid_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    before = recorded(decoder, path, lambda: decoder(tokens_BS, valid_BS)).logits_BSV
    forget_how_to_route(decoder)
    with TraceReader(path) as trace, replay(decoder, trace, range(len(lengths))):
        after = decoder(tokens_BS, valid_BS).logits_BSV
    assert torch.equal(after[valid_BS], before[valid_BS])


POLICIES = [
    ("softmax_topk", {"policy": "drop", "factor": 0.6}),
    ("softmax_topk", {"policy": "drop", "factor": 0.6, "scope": "group"}),
    ("softmax_topk", {"policy": "reroute", "factor": 0.8}),
    ("softmax_topk", {"policy": "wave", "factor": 0.6}),
    ("softmax_topk", {"policy": "wave", "factor": 0.6, "scope": "group"}),
    ("top_p", {"policy": "drop", "factor": 0.4}),
    ("sinkhorn", {"policy": "reroute", "factor": 0.8}),
    ("hash", {"policy": "wave", "factor": 0.6}),
]


@pytest.mark.parametrize(("name", "capacity"), POLICIES)
@pytest.mark.parametrize("train", [False, True])
def test_who_computes_is_recorded_too(
    path: Path, name: str, capacity: dict[str, Any], train: bool
) -> None:
    decoder, tokens_BS = decoder_of(moe_of(name, capacity=capacity)).train(train), text()
    valid_BS = padded(tokens_BS)
    before = recorded(decoder, path, lambda: decoder(tokens_BS, valid_BS))
    batch = whole(path)
    for number, layer in enumerate(before.moe):
        routing, rows = layer.routing, batch.layers[number]
        kept_N = routing.wished_N
        assert rows.chosen_N.tolist() == routing.chosen_N[kept_N].tolist()
        expert_N = routing.expert_N[kept_N]
        assert rows.computed_N.tolist() == expert_N.where(expert_N < 4, -1).tolist()
        assert torch.equal(torch.from_numpy(rows.weight_N), routing.weight_N[kept_N])
    if capacity["policy"] != "wave":
        assert any((rows.computed_N != rows.chosen_N).any() for rows in batch.layers.values())
    forget_how_to_route(decoder)
    with TraceReader(path) as trace, replay(decoder, trace, range(3)), torch.inference_mode():
        assert torch.equal(decoder(tokens_BS, valid_BS).logits_BSV, before.logits_BSV)


@pytest.mark.parametrize("name", sorted(ROUTERS.keys() - CHOOSE_ALONE))
def test_the_router_weighs_recorded_experts_as_it_did(path: Path, name: str) -> None:
    # The router is as it was, so that what it recomputes is what was recorded.
    decoder, tokens_BS = decoder_of(moe_of(name)), text()
    valid_BS = padded(tokens_BS)
    before = recorded(decoder, path, lambda: decoder(tokens_BS, valid_BS))
    with TraceReader(path) as trace, replay(decoder, trace, range(3), "recomputed"):
        after = decoder(tokens_BS, valid_BS)
    assert torch.equal(after.logits_BSV, before.logits_BSV)


@pytest.mark.parametrize("policy", ["drop", "reroute"])
def test_recomputed_weights_follow_capacity(path: Path, policy: str) -> None:
    capacity = {"policy": policy, "factor": 0.7}
    decoder, tokens_BS = decoder_of(moe_of("softmax_topk", capacity=capacity)), text()
    before = recorded(decoder, path, lambda: decoder(tokens_BS))
    with TraceReader(path) as trace, replay(decoder, trace, range(3), "recomputed"):
        assert torch.equal(decoder(tokens_BS).logits_BSV, before.logits_BSV)


def test_recomputed_weights_teach_the_router_and_recorded_ones_do_not(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text()
    recorded(decoder, path, lambda: decoder(tokens_BS))
    gates = [layer.router.get_parameter("weight") for layer in moe_layers(decoder)]
    with TraceReader(path) as trace:
        with replay(decoder, trace, range(3), "recomputed"):
            decoder(tokens_BS).logits_BSV.square().sum().backward()
        assert all(gate.grad is not None and gate.grad.any() for gate in gates)
        decoder.zero_grad()
        with replay(decoder, trace, range(3)):
            decoder(tokens_BS).logits_BSV.square().sum().backward()
        assert all(gate.grad is None for gate in gates)


class Checkpointed(nn.Module):
    """One MoE layer that is run again in the backward pass."""

    def __init__(self, layer: MoE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BSD: Tensor) -> Tensor:
        return checkpoint(lambda x_BSD: self.layer(x_BSD).hidden, x_BSD, use_reentrant=False)


def test_checkpointing_runs_a_layer_again_at_the_same_place(path: Path) -> None:
    # Two passes of four positions each: the first one's backward comes before the second.
    torch.manual_seed(0)
    layer, x_BSD = MoE(16, MoEConfig.parse(moe_of("softmax_topk"))), torch.randn(1, 8, 16)
    stated = TracedLayer(layer=0, num_experts=4, top_k=2)
    with write_trace(path, TraceMeta(model="m", vocabulary=9, layers=(stated,))) as writer:
        recorder = Recorder(writer)
        recorder.begin(1)
        recorder.take(0, layer(x_BSD).routing)
        recorder.end_pass(torch.zeros(1, 8, dtype=torch.int64))
    gradients: list[Tensor] = []
    forget_how_to_route(Checkpointed(layer))
    for model, run in ((Checkpointed(layer), True), (layer, False)):
        layer.zero_grad()
        with TraceReader(path) as trace, replay_layers(model, {0: layer}, trace, [0]):
            for part_BSD in x_BSD.split(4, 1):
                output = model(part_BSD)
                (output if run else output.hidden).square().sum().backward()
        assert layer.experts.w_in.grad is not None
        gradients.append(layer.experts.w_in.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_balancing_reads_the_replayed_choices(path: Path) -> None:
    # The gate is turned around, so that it would choose the experts that it liked least.
    decoder, tokens_BS = decoder_of(), text()
    before = recorded(decoder, path, lambda: decoder(tokens_BS))
    with torch.no_grad():
        for layer in moe_layers(decoder):
            layer.router.get_parameter("weight").neg_()
    decoder.train()
    with TraceReader(path) as trace, replay(decoder, trace, range(3)):
        output = decoder(tokens_BS)
    for old, new in zip(before.moe, output.moe, strict=True):
        assert torch.equal(old.routing.chosen_N, new.routing.chosen_N)
    assert output.balance_loss.isfinite()
    assert output.losses["balance"] > 0


def test_positions_go_on_in_generation(path: Path) -> None:
    # Five tokens at once, then four one by one: positions 0 to 4, then 5, 6, 7 and 8 of each.
    decoder, tokens_BS = decoder_of(), text(2)

    def generated() -> Tensor:
        cache = KVCache.empty(decoder.config, 2, 9)
        parts = [tokens_BS[:, :5], *tokens_BS[:, 5:].split(1, 1)]
        return torch.cat([decoder(part, cache=cache).logits_BSV for part in parts], 1)

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


def test_a_new_cache_begins_new_sequences_and_so_does_a_shortened_one(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text(1)
    first, second = (KVCache.empty(decoder.config, 1, 9) for _ in range(2))

    def read() -> None:
        decoder(tokens_BS[:, :3], cache=first)
        decoder(tokens_BS[:, 3:5], cache=first)
        decoder(tokens_BS[:, :2], cache=second)
        # Another pass came in between.
        decoder(tokens_BS[:, 5:6], cache=first)
        for layer in first.layers:
            layer.length = 4
        decoder(tokens_BS[:, 4:7], cache=first)
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


def test_an_moe_between_lstms(path: Path) -> None:
    tree = {"width": 16, "vocabulary": VOCABULARY, "context": 32, "moe": moe_of("softmax_topk")}
    torch.manual_seed(0)
    model = LstmMoEConfig.parse(tree).build().eval()
    before = recorded(model, path, lambda: model(text()))
    forget_how_to_route(model)
    with TraceReader(path) as trace, replay(model, trace, range(3)), torch.inference_mode():
        assert trace.meta.numbers == (1,)
        assert torch.equal(model(text()).logits_BSV, before.logits_BSV)


def test_nothing_of_a_recording_or_a_replay_is_left_behind(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text()
    before = decoder(tokens_BS).logits_BSV
    recorded(decoder, path, lambda: decoder(tokens_BS[:1]))
    with TraceReader(path) as trace, replay(decoder, trace, [0]):
        pass
    assert torch.equal(decoder(tokens_BS).logits_BSV, before)
    assert len(whole(path)) == 9


def test_a_text_read_in_other_batches_and_parts(path: Path) -> None:
    # Sequences 2 and 0, in another order, the first four positions of each and then the rest.
    decoder, tokens_BS = decoder_of(), text()
    before = recorded(decoder, path, lambda: decoder(tokens_BS)).logits_BSV[[2, 0]]
    forget_how_to_route(decoder)
    with TraceReader(path) as trace, replay(decoder, trace, [2, 0]), torch.inference_mode():
        cache = KVCache.empty(decoder.config, 2, 9)
        again = [decoder(part, cache=cache) for part in tokens_BS[[2, 0]].split([4, 5], 1)]
    torch.testing.assert_close(torch.cat([one.logits_BSV for one in again], 1), before)


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
        cache = KVCache.empty(decoder.config, 1, 12)
        decoder(tokens_BS, cache=cache)
        with pytest.raises(DataError, match=r"sequence 0 has 9 tokens, .* was given 10"):
            decoder(tokens_BS[:, :1], cache=cache)


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


def test_a_recorder_used_wrongly_says_so(path: Path) -> None:
    decoder, tokens_BS = decoder_of(), text()
    routings = [layer.routing for layer in decoder(tokens_BS).moe]
    with write_trace(path, trace_meta(decoder, "tiny")) as writer:
        recorder = Recorder(writer)
        recorder.take(0, routings[0])
        with pytest.raises(DataError, match="layer 0 was recorded twice in one pass"):
            recorder.take(0, routings[0])
        with pytest.raises(DataError, match="layer 1 told nothing of its routing in this pass"):
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
    words = "layer 0: probabilities are to be recorded, and its router gives none"
    with pytest.raises(DataError, match=words):
        recorded(decoder, path, lambda: decoder(text()), probabilities="float16")
    assert not path.exists()


ASSIGNED = {"base", "sinkhorn"}


@pytest.mark.parametrize("name", ["batchwise", "gshard", "switch", "noisy_topk", *sorted(ASSIGNED)])
def test_what_training_draws_or_assigns_is_replayed(path: Path, name: str) -> None:
    decoder, tokens_BS = decoder_of(moe_of(name)).train(), text()
    before = recorded(decoder, path, lambda: decoder(tokens_BS))
    if name in ASSIGNED:
        assert any((one.computed_N != one.chosen_N).any() for one in whole(path).layers.values())
    with TraceReader(path) as trace, replay(decoder, trace, range(3)), torch.inference_mode():
        after = decoder(tokens_BS)
    # Under batchwise masks experts choose tokens, and rows are in the experts' order.
    torch.testing.assert_close(after.logits_BSV, before.logits_BSV)
    if name != "batchwise":
        assert torch.equal(after.logits_BSV, before.logits_BSV)
