"""What a model did is recorded, and replayed gives the same logits, bit for bit.

B sequences, S positions, V vocabulary, K choices at most.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tracing.traced_models import (
    ANY_ORDER,
    CHOOSE_ALONE,
    ROUTERS,
    VOCABULARY,
    decoder_of,
    forget_how_to_route,
    moe_of,
    padded,
    recorded,
    text,
    whole,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixtura.models import State
from mixtura.models.historic import LstmMoEConfig
from mixtura.moe import MoE, MoEConfig
from mixtura.moe.layer import moe_layers
from mixtura.moe.routers import ROUTERS as REGISTERED
from mixtura.trace import TracedLayer, TraceMeta, TraceReader, write_trace
from mixtura.tracing.model_trace import replay
from mixtura.tracing.record import Recorder
from mixtura.tracing.replay import replay as replay_layers


def test_the_table_names_every_kind() -> None:
    assert REGISTERED.values.keys() == ROUTERS.keys()


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
        kept_N = routing.has_choice_N
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
        state = State.empty(decoder.config, 2, 9)
        again = [decoder(part, state=state) for part in tokens_BS[[2, 0]].split([4, 5], 1)]
    torch.testing.assert_close(torch.cat([one.logits_BSV for one in again], 1), before)


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
