"""Decoders whose layers hold different mixers. B sequences, S positions, V vocabulary."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig, State
from mixtura.models.recurrent_state import INTERVAL, Histories, RecurrentLayer
from mixtura.shapes.storage.cache import SNAPSHOTS

LENGTH = 24
BASE: dict[str, Any] = {
    "layers": 3,
    "width": 16,
    "vocabulary": 19,
    "context": 600,
    "attention": {"heads": 4, "kv_heads": 2, "head_dim": 6},
    "ffn_width": 24,
    "moe": {"num_experts": 4, "top_k": 2, "expert_width": 8, "placement": {"first_dense": 1}},
}
RECURRENCES: dict[str, dict[str, Any]] = {
    "short_conv": {"kind": "short_conv", "kernel": 3, "layers": [0, 2]},
    "short_conv_with_bias": {"kind": "short_conv", "kernel": 4, "bias": True, "layers": [1]},
    "gated_delta": {
        "kind": "gated_delta",
        "key_heads": 2,
        "value_heads": 4,
        "key_dim": 6,
        "value_dim": 5,
        "kernel": 4,
        "layers": [0, 2],
    },
    "mamba2": {
        "kind": "mamba2",
        "heads": 4,
        "head_dim": 6,
        "state_dim": 5,
        "groups": 2,
        "kernel": 4,
        "layers": [0, 2],
    },
    "mamba2_with_biases_and_bounds": {
        "kind": "mamba2",
        "heads": 3,
        "head_dim": 5,
        "state_dim": 7,
        "kernel": 2,
        "bias": True,
        "conv_bias": False,
        "least_step": 0.5,
        "most_step": 2.0,
        "layers": [1],
    },
}
TOKENS_BS = torch.randint(19, (2, LENGTH), generator=torch.Generator().manual_seed(0))
kinds = pytest.mark.parametrize("kind", RECURRENCES)


def build(kind: str, **fields: Any) -> Decoder:
    torch.manual_seed(0)
    tree = {**BASE, "recurrence": RECURRENCES[kind], **fields}
    decoder = Decoder(DecoderConfig.parse(tree)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return decoder


def assert_near(found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


@kinds
def test_a_layer_holds_one_mixer(kind: str) -> None:
    decoder = build(kind)
    for number, block in enumerate(decoder.blocks):
        recurrent = number in RECURRENCES[kind]["layers"]
        assert (block.recurrence is not None) == recurrent == (block.attention is None)
    state = State.empty(decoder.config, 2, 5)
    assert len(state.kv_layers) == 3 - len(RECURRENCES[kind]["layers"])


@kinds
@pytest.mark.parametrize("parts", [[1] * LENGTH, [LENGTH], [7, 1, 9, 7], [23, 1]])
def test_in_parts_equals_the_whole(kind: str, parts: list[int]) -> None:
    decoder = build(kind)
    state = State.empty(decoder.config, 2, LENGTH)
    with torch.no_grad():
        expected = decoder(TOKENS_BS).logits_BSV
        each = [decoder(part, state=state).logits_BSV for part in TOKENS_BS.split(parts, 1)]
    assert_near(torch.cat(each, 1), expected)


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(kind: str, side: str) -> None:
    # Without positions: RoPE is relative, so shifted tokens have the same logits.
    decoder, padding = build(kind), 9
    valid_BS = torch.ones(2, LENGTH, dtype=torch.bool)
    shown = slice(padding, None) if side == "left" else slice(LENGTH - padding)
    valid_BS[1] = False
    valid_BS[1, shown] = True
    after = torch.randint(19, (2, 4), generator=torch.Generator().manual_seed(1))
    state, alone = (State.empty(decoder.config, slots, 40) for slots in (2, 1))
    with torch.no_grad():
        short = TOKENS_BS[1:, shown]
        expected = decoder(short, state=alone).logits_BSV[0]
        assert_near(decoder(TOKENS_BS, valid_BS).logits_BSV[1, shown], expected)
        assert_near(decoder(TOKENS_BS, valid_BS, state).logits_BSV[1, shown], expected)
        found = decoder(after, None, state).logits_BSV[1]
        if side == "left":
            assert_near(found, decoder(after[1:], state=alone).logits_BSV[0])
    for layer, other in zip(state.layers, alone.layers, strict=True):
        if side == "left" and isinstance(layer, RecurrentLayer):
            assert isinstance(other, RecurrentLayer)
            for kept, expected in zip(layer.states, other.states, strict=True):
                assert_near(kept[1], expected[0])


@kinds
def test_each_parameter_has_a_gradient(kind: str) -> None:
    decoder = build(kind).train()
    valid_BS = torch.ones_like(TOKENS_BS, dtype=torch.bool)
    valid_BS[0, :5] = False
    output = decoder(TOKENS_BS, valid_BS)
    output.logits_BSV[valid_BS].logsumexp(-1).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert ".experts." in name or parameter.grad.abs().max() > 0, name


@kinds
@pytest.mark.parametrize("position", [0, 1, 6, 11, 12, 13, 19])
def test_going_on_from_an_earlier_position(kind: str, position: int) -> None:
    decoder = build(kind)
    state = State.empty(decoder.config, 2, LENGTH)
    other = (TOKENS_BS + 1) % 19
    text = torch.cat([TOKENS_BS[:, :position], other[:, position : position + 3]], 1)
    with torch.no_grad():
        for part in TOKENS_BS.split([12, 1, 1, 6, 1, 1, 2], 1):
            decoder(part, state=state)
        state.length = position
        found = decoder(text[:, position:], state=state).logits_BSV
        assert state.length == position + 3
        assert_near(found, decoder(text).logits_BSV[:, position:])


@kinds
def test_a_snapshot_brings_back_the_state(kind: str) -> None:
    decoder = build(kind)
    state = State.empty(decoder.config, 2, LENGTH)
    with torch.no_grad():
        decoder(TOKENS_BS[:, :5], state=state)
        places = [state.snapshot(slot, 5) for slot in range(2)]
        expected = decoder(TOKENS_BS[:, 5:9], state=state).logits_BSV
        for other in (TOKENS_BS[:, 7:20], TOKENS_BS[:, 2:4]):
            (state.length,) = {state.rewind(place) for place in places}
            decoder(other, state=state)
        (state.length,) = {state.rewind(place) for place in places}
        assert torch.equal(decoder(TOKENS_BS[:, 5:9], state=state).logits_BSV, expected)


@kinds
@pytest.mark.parametrize("block", [0, 1, 2])
def test_an_interrupted_pass_is_undone(kind: str, block: int) -> None:
    decoder = build(kind)
    state = State.empty(decoder.config, 2, LENGTH)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        decoder(TOKENS_BS[:, :5], state=state)
        decoder(TOKENS_BS[:, 5:6], state=state)
        handle = decoder.blocks[block].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder(TOKENS_BS[:, 9:], state=state)
        handle.remove()
        assert state.length == 6
        found = decoder(TOKENS_BS[:, 6:], state=state).logits_BSV
        assert_near(found, decoder(TOKENS_BS).logits_BSV[:, 6:])


def histories(slots: int = 2, capacity: int = 4096) -> tuple[Histories, RecurrentLayer]:
    layer = RecurrentLayer([(1,)], slots, None)
    return Histories([layer], slots, capacity), layer


def read(made: tuple[Histories, RecurrentLayer], start: int, end: int, decoded: bool) -> None:
    """Slot 1 reads tokens that are their positions; its state is their number."""
    history, layer = made
    position_R = torch.arange(start, end)
    history.begin(torch.ones_like(position_R), position_R, position_R, decoded=decoded)
    layer.states[0][1] = end
    history.end(1, end)


def test_histories_goes_to_the_nearest_copy_before() -> None:
    history, layer = made = histories()
    for start, end in ((0, 10), (10, 30), (30, 31)):
        read(made, start, end, decoded=start == 30)
        history.keep(1)
    assert history.go_to(1, 31) == 31
    assert history.go_to(1, 29) == 10
    assert layer.states[0][1].item() == 10
    run = history.run(1, 10, 29)
    assert (run.token_R.tolist(), run.decoded) == ([*range(10, 29)], False)
    # Copies of what comes behind are gone.
    read(made, 10, 40, decoded=True)
    assert history.run(1, 8, 40).token_R.tolist() == [8, 9]
    assert history.run(1, 10, 40).decoded
    assert history.go_to(1, 31) == 10
    assert history.go_to(1, 3) == 0
    assert layer.states[0][1].item() == 0


def test_histories_refuses_a_gap() -> None:
    history, _ = made = histories()
    read(made, 0, 10, decoded=False)
    with pytest.raises(ConfigError, match="position 11 of slot 1 lies beyond the 10 tokens"):
        history.go_to(1, 11)
    history.go_to(1, 4)
    with pytest.raises(ConfigError, match="position 5 of slot 1 lies beyond the 4 tokens"):
        history.go_to(1, 5)


def test_copies_lie_denser_near_the_newest_token() -> None:
    history, _ = made = histories()
    for end in range(100, 2001, 100):
        read(made, end - 100, end, decoded=False)
        history.keep(1)
    found = []
    for position in range(1999, 0, -1):
        place = history.go_to(1, position)
        found += [place] if place not in found else []
        read(made, place, position, decoded=False)
    # The newest is at 2000 itself.
    assert len(found) == SNAPSHOTS
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0
    distances = [2000 - place for place in found]
    assert all(far >= near for near, far in pairwise(distances))
    assert distances[0] <= 2 * INTERVAL


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": [0, 3]}, "recurrence.layers names layer 3, outside 0..layers-1=2"),
        ({"layers": [1, 1]}, "layers names layer 1 twice; name each layer once"),
        ({"layers": [0, 1, 2]}, "recurrence.layers names all 3 layers; leave attention in one"),
        ({"layers": []}, "layers"),
        ({"layers": [0], "kernel": 1}, "kernel"),
    ],
)
def test_refused_recurrences(fields: dict[str, Any], said: str) -> None:
    recurrence = {**RECURRENCES["short_conv"], **fields}
    with pytest.raises(ConfigError, match=said):
        DecoderConfig.parse({**BASE, "recurrence": recurrence})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"groups": 3}, "heads=4 must be a multiple of groups=3"),
        ({"least_step": 0.1, "most_step": 0.05}, "most_step=0.05 must be at least least_step=0.1"),
        ({"kernel": 17}, "kernel"),
    ],
)
def test_refused_mamba2(fields: dict[str, Any], said: str) -> None:
    recurrence = {**RECURRENCES["mamba2"], **fields}
    with pytest.raises(ConfigError, match=said):
        DecoderConfig.parse({**BASE, "recurrence": recurrence})


def test_a_window_in_a_recurrent_layer_is_refused() -> None:
    heads = {**BASE["attention"], "local": {"window": 4, "layers": [1, 2]}}
    with pytest.raises(ConfigError, match=r"layer 2 has a window in attention\.local\.layers and"):
        build("short_conv", attention=heads)


def test_longrope_beside_recurrence_is_refused() -> None:
    scaling = {
        "kind": "longrope",
        "short": [1.0, 1.0, 1.0],
        "long": [2.0, 2.0, 2.0],
        "original_context": 8,
        "short_amplitude": 1.0,
        "long_amplitude": 1.0,
    }
    with pytest.raises(ConfigError, match="longrope reads long texts again"):
        build("short_conv", attention={**BASE["attention"], "rope_scaling": scaling})
