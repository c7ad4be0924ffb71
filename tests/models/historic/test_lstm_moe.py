"""An MoE between two LSTMs: its ledger, what each position sees, how it learns.

B sequences, S positions, V vocabulary.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.models.historic import LstmMoE, LstmMoEConfig
from mixtura.models.historic.shazeer_2017 import two_levels
from mixtura.moe import end_step

NOISY: dict[str, Any] = {"kind": "noisy_topk"}
MOE: dict[str, Any] = {"num_experts": 4, "top_k": 2, "expert_width": 12, "router": NOISY}
TREE: dict[str, Any] = {"width": 8, "vocabulary": 19, "context": 12, "moe": MOE}
KINDS: dict[str, dict[str, Any]] = {
    "flat": {},
    "hierarchical": {
        "moe": {**MOE, "num_experts": 8, "top_k": 4, "router": two_levels(4)},
    },
    "projected": {"units": 20},
    "dense": {"moe": None, "hidden": [16, 24]},
    "drop": {"moe": {**MOE, "capacity": {"policy": "drop", "factor": 0.7}}},
    "shared": {"moe": {**MOE, "shared_width": 6, "residual_width": 5}},
}


def config_of(**fields: Any) -> LstmMoEConfig:
    return LstmMoEConfig.parse({**TREE, **fields})


def build(**fields: Any) -> LstmMoE:
    torch.manual_seed(0)
    model = LstmMoE(config_of(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Gates begin as zeros, where every token makes the same choice.
            if "router" in name:
                parameter.normal_()
    return model


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(19, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_is_what_is_built(kind: str) -> None:
    config = config_of(**KINDS[kind])
    built = {name: tuple(p.shape) for name, p in config.build().named_parameters()}
    assert {weight.name: weight.shape for weight in config.weights()} == built
    assert config.total_parameters() == sum(p.numel() for p in config.build().parameters())


def test_counts_by_hand() -> None:
    # Two LSTMs of 4 * 8 * (8 + 8) = 512; two gates of 4 * 8 = 32; an expert 8 * 12 + 12 * 8 = 192.
    # Inner: 1024 + 64 + 4 * 192 = 1856, of which 2 experts rest: 1856 - 384 = 1472 multiply-adds.
    config = config_of()
    assert config.inner_parameters() == 1856
    assert config.operations_per_timestep() == 1472
    # Embedding and head 19 * 8 = 152 each.
    assert config.total_parameters() == 1856 + 304
    assert config.active_parameters("A") == 1472 + 304
    assert config.active_parameters("B") == 1472 + 152
    # A multiply-add is 2, and the head is multiplied too.
    assert config.flops_per_token() == 2 * (1472 + 152)


def test_a_projected_lstm_by_hand() -> None:
    # 20 units: four gates of 20 * (8 + 8), and 8 * 20 back to the width.
    lstm = [w.parameters for w in config_of(units=20).weights() if w.name.startswith("first.")]
    assert lstm == [4 * 20 * 8, 4 * 20 * 8, 8 * 20]


def test_what_comes_out() -> None:
    output = build()(tokens(2, 7))
    assert output.logits_BSV.shape == (2, 7, 19)
    assert [layer is None for layer in output.layers] == [True, False, True]
    assert output.moe[0].routing.num_sequences == 2
    assert set(output.losses) == {"importance", "load"}
    assert config_of().moe_shapes.keys() == {1}


def test_it_computes_what_the_paper_says() -> None:
    # embedding, + LSTM, + sigmoid of the MoE, + LSTM, softmax's logits; no dropout when it is 0.
    model = build()
    model.eval()
    assert model.moe is not None
    x = model.embedding(tokens(2, 5))
    x = x + model.first(x)[0]
    x = x + torch.sigmoid(model.moe(x).hidden)
    x = x + model.second(x)[0]
    torch.testing.assert_close(model(tokens(2, 5)).logits_BSV, x @ model.head.weight.T)


def test_dropout_follows_each_layer_in_training_alone() -> None:
    model = build(dropout=0.5)
    calls: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:  # noqa: ARG001
        calls.append(out)

    model.dropout.register_forward_hook(keep)
    model(tokens(2, 6))
    # Embedding, LSTM, MoE, LSTM; about half of each is 0.
    assert len(calls) == 4
    assert all(0.2 < (call == 0).float().mean() < 0.8 for call in calls)
    model.eval()
    assert model(tokens(2, 6)).logits_BSV.equal(model(tokens(2, 6)).logits_BSV)


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_sees_a_later_one(kind: str) -> None:
    model = build(**KINDS[kind]).eval()
    first, second = tokens(2, 10, seed=1), tokens(2, 10, seed=2)
    assert (first[:, 6:] != second[:, 6:]).any(0).all()
    second[:, :6] = first[:, :6]
    one, other = model(first).logits_BSV, model(second).logits_BSV
    torch.testing.assert_close(one[:, :6], other[:, :6])
    assert not torch.allclose(one[:, 6:], other[:, 6:])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_at_the_end_changes_nothing_before_it(kind: str) -> None:
    model = build(**KINDS[kind]).eval()
    tokens_BS, lengths = tokens(3, 9), [9, 4, 1]
    padded = model(tokens_BS, torch.arange(9) < torch.tensor(lengths)[:, None]).logits_BSV
    for sequence, length in enumerate(lengths):
        alone = model(tokens_BS[sequence : sequence + 1, :length]).logits_BSV[0]
        torch.testing.assert_close(padded[sequence, :length], alone, rtol=1e-4, atol=1e-5)


def test_padding_before_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"padding before a token in 1 of 2 sequences"):
        build()(tokens(2, 2), torch.tensor([[True, True], [False, True]]))


def test_a_sequence_beyond_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"13 tokens exceeds the model's context of 12"):
        build()(tokens(1, 13))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_every_parameter(kind: str) -> None:
    model = build(**KINDS[kind])
    output = model(tokens(8, 12))
    (output.logits_BSV.square().mean() + output.balance_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", ["flat", "hierarchical", "projected"])
def test_a_few_steps_learn_a_sequence_by_heart(kind: str) -> None:
    # As built, gates at zero: noise alone has to break the tie between the experts.
    torch.manual_seed(0)
    model = LstmMoE(config_of(**{"width": 32, **KINDS[kind], "units": 40}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    tokens_BS, losses = tokens(2, 12), []
    for _ in range(60):
        output = model(tokens_BS[:, :-1])
        loss = F.cross_entropy(output.logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())
        (loss + output.balance_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        end_step(model)
        losses.append(loss.item())
    assert losses[0] > 2.5
    assert losses[-1] < 0.3


def test_experts_use_relu_unless_told_otherwise() -> None:
    assert config_of().moe_shapes[1].activation == "relu"
    assert config_of(moe={**MOE, "activation": "gelu"}).moe_shapes[1].activation == "gelu"
    config = config_of()
    assert config.moe is not None
    assert LstmMoEConfig(**{**TREE, "moe": config.moe}) == config
    assert LstmMoEConfig.parse(config.model_dump()) == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"moe": None}, ["moe and hidden=[]", "neither is given"]),
        ({"hidden": [4]}, ["hidden=[4]", "both are given"]),
        ({"moe": None, "hidden": [4, 0]}, ["hidden.1", "greater than 0", "given 0"]),
        ({"units": 7}, ["units=7", "width=8 or more"]),
        ({"dropout": 1.0}, ["dropout", "less than 1", "given 1.0"]),
        ({"moe": {**MOE, "placement": {"every": 2}}}, ["moe.placement", "leave them out"]),
        (
            {"moe": {**MOE, "pyramid": [{"from_layer": 1, "num_experts": 8}]}},
            ["moe.pyramid", "leave them out"],
        ),
        ({"layers": 2}, ["unknown key 'layers'"]),
    ],
)
def test_a_bad_config_names_its_value_and_bound(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        config_of(**fields)
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message
