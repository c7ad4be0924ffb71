"""Balancing in plain transformers training. T tokens, E experts, K experts per token."""

import copy
from typing import Any

import pytest
import torch
from tests.hf_models.small_moes import (
    batch,
    checkpoint_activations,
    collapse,
    gradients,
    mixtral,
)
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mixtura.errors import ConfigError
from mixtura.hf_models.balancing import attach_balancing
from mixtura.hf_models.observation import observe_routing
from mixtura.moe.losses import balance_loss
from mixtura.moe.routing import Routing


def hooks(model: nn.Module) -> int:
    counted = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return counted + len(_global_optimizer_post_hooks)


def test_two_collapsed_layers_are_told_where_pooling_sees_balance() -> None:
    # 4 experts, top-2. Layer 0 gives everything to 0 and 1, layer 1 to 2 and 3, with logits of 8
    # and 0: P = e^8 / (2 e^8 + 2) = 0.49983 for each favourite, and 0.00017 for the others.
    # Ours, by layer: f = 1/2, 1/2, 0, 0 and E * sum f P = 4 * 0.49983 = 1.99933.
    # Pooled over both layers: f = 1/2 of the tokens for each (it sums to k = 2), P = 1/4 each, so
    # 4 * 4 * 1/2 * 1/4 = 2.0: exactly k, what transformers gives to perfect balance.
    model = mixtral(output_router_logits=True)
    collapse(model, [[0, 1], [2, 3]])
    losses: dict[int, float] = {}

    def hear(layer: int, routing: Routing) -> None:
        losses[layer] = balance_loss(routing).item()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with observe_routing(model, hear), attach_balancing(model, balance=1.0) as balancing:
        outputs = [model(**batch()) for _ in range(3)]
        torch.stack([output.loss for output in outputs]).sum().backward()
        optimizer.step()
    pooled = load_balancing_loss_func(outputs[0].router_logits, num_experts=4, top_k=2)
    assert isinstance(pooled, Tensor)
    assert pooled.item() == pytest.approx(2.0, abs=1e-5)
    assert losses == {0: pytest.approx(1.99933, abs=1e-5), 1: pytest.approx(1.99933, abs=1e-5)}
    assert balancing.take_log()["moe/balance_loss"] == pytest.approx(1.99933, abs=1e-5)
    # 3 micro-batches of 4 * 8 tokens, each with two experts.
    first, second = balancing.report()
    assert first.load == (96, 96, 0, 0)
    assert second.load == (0, 0, 96, 96)
    assert first.steps == second.steps == 1
    assert first.collapsed
    assert second.collapsed
    assert (first.starving, second.starving) == ((2, 3), (0, 1))
    assert first.max_over_mean == second.max_over_mean == 2.0
    assert str(second) == (
        "layer 1: busiest over mean 2.00; collapsed; starving experts 0, 1, over 1 steps"
    )


def loss_of(model: Any, given: dict[str, Tensor]) -> float:
    return model(**given).loss.item()


def test_the_models_loss_gains_the_mean_over_layers() -> None:
    model = mixtral()
    plain = loss_of(model, batch())
    seen: list[float] = []
    with observe_routing(model, lambda _, routing: seen.append(balance_loss(routing).item())):
        model(**batch())
    with attach_balancing(model, balance=0.5):
        balanced = loss_of(model, batch())
    assert balanced - plain == pytest.approx(0.5 * (seen[0] + seen[1]) / 2, abs=1e-5)
    assert loss_of(model, batch()) == plain


def test_transformers_scale_is_k_times_ours() -> None:
    model = mixtral()
    plain = loss_of(model, batch())
    with attach_balancing(model, balance=0.5):
        ours = loss_of(model, batch()) - plain
    with attach_balancing(model, balance=0.5, scale="transformers"):
        theirs = loss_of(model, batch()) - plain
    assert theirs == pytest.approx(2 * ours, rel=1e-4)


def test_z_loss_is_added() -> None:
    model = mixtral()
    plain = loss_of(model, batch())
    with attach_balancing(model, balance=0.0, z_loss=0.25) as balancing:
        added = loss_of(model, batch()) - plain
        assert added == pytest.approx(0.25 * balancing.take_log()["moe/z_loss"], rel=1e-4)
    assert added > 0


def test_the_models_own_loss_is_not_counted_too() -> None:
    model = mixtral(output_router_logits=True, router_aux_loss_coef=0.5)
    output = model(**batch())
    own = 0.5 * output.aux_loss.item()
    task = output.loss.item() - own
    with attach_balancing(model, balance=0.01) as balancing:
        silent = model(**batch())
        ours = 0.01 * balancing.take_log()["moe/balance_loss"]
        # It is still told, and weighs nothing.
        assert silent.aux_loss.item() == pytest.approx(2 * own)
        assert silent.loss.item() == pytest.approx(task + ours, abs=1e-5)
        # What a checkpoint would hold is the user's.
        assert model.config.router_aux_loss_coef == model.router_aux_loss_coef == 0.5
    with attach_balancing(model, balance=0.01, keep_own_loss=True):
        assert loss_of(model, batch()) == pytest.approx(task + own + ours, abs=1e-5)


def test_evaluation_gains_nothing() -> None:
    model = mixtral().eval()
    plain = loss_of(model, batch())
    with attach_balancing(model, balance=1.0) as balancing:
        assert loss_of(model, batch()) == plain
        model.train()
        with torch.no_grad():
            assert loss_of(model, batch()) == plain
        assert balancing.report() == ()


def test_detaching_removes_every_hook() -> None:
    model = mixtral()
    before = hooks(model)
    balancing = attach_balancing(model)
    assert hooks(model) > before
    balancing.detach()
    assert hooks(model) == before


def test_a_refused_argument_leaves_no_hook() -> None:
    model = mixtral()
    before = hooks(model)
    with pytest.raises(ConfigError, match=r"layer 0: router model.layers.0.mlp.gate has no bias"):
        attach_balancing(model, bias_rate=0.001)
    with pytest.raises(ConfigError, match=r"attach_balancing: balance: .* greater than or equal"):
        attach_balancing(model, balance=-1.0)
    assert hooks(model) == before


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global_batch"])
def test_padding_changes_nothing(scope: Any) -> None:
    # The same two sequences, alone and with padding behind them.
    model = mixtral()
    short = batch(2)
    padded = {
        "input_ids": nn.functional.pad(short["input_ids"], (0, 5), value=7),
        "attention_mask": nn.functional.pad(short["attention_mask"], (0, 5)),
        "labels": nn.functional.pad(short["labels"], (0, 5), value=-100),
    }
    found = []
    for given in (short, padded):
        with attach_balancing(model, balance=1.0, z_loss=0.1, scope=scope) as balancing:
            found.append(loss_of(model, given))
            balancing.end_step()
            # 2 * 8 tokens with 2 experts each.
            assert [sum(layer.load) for layer in balancing.report()] == [32, 32]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("scope", ["sequence", "global_batch"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(use_reentrant: bool, scope: Any) -> None:
    found = []
    for checkpointed in (False, True):
        model = mixtral()
        if checkpointed:
            checkpoint_activations(model, use_reentrant=use_reentrant)
        with attach_balancing(model, balance=1.0, z_loss=0.1, scope=scope) as balancing:
            losses = []
            for given in (batch(padded=True), batch(2)):
                loss = model(**given).loss
                # As a gradient scaler, or accumulation, would.
                (3 * loss).backward()
                losses.append(loss.item())
            balancing.end_step()
            loads = [layer.load for layer in balancing.report()]
        found.append((losses, gradients(model), loads))
    torch.testing.assert_close(found[1], found[0])
    # Without the balance loss the router's gradient is another, so the above shows something.
    model = mixtral()
    (3 * model(**batch(padded=True)).loss).backward()
    gate = "model.layers.0.mlp.gate.weight"
    assert not torch.allclose(gradients(model)[gate], found[0][1][gate], atol=1e-3)


def test_one_backward_through_two_reentrant_passes() -> None:
    found = []
    for together in (True, False):
        model = mixtral()
        checkpoint_activations(model, use_reentrant=True)
        with attach_balancing(model, balance=1.0):
            first, second = model(**batch(padded=True)).loss, model(**batch(2)).loss
            if together:
                (first + 2 * second).backward()
            else:
                first.backward()
                (2 * second).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0])


def test_a_copied_model_is_not_ours() -> None:
    model = mixtral()
    with attach_balancing(model, balance=1.0) as balancing:
        twin = copy.deepcopy(model)
        assert loss_of(twin, batch()) < loss_of(model, batch())
        balancing.end_step()
        assert sum(balancing.report()[0].load) == 4 * 8 * 2


def test_a_model_called_around_balancing_is_told() -> None:
    model = mixtral()
    with (
        attach_balancing(model),
        pytest.raises(ConfigError, match="called around the MixtralForCausalLM"),
    ):
        model.model(input_ids=batch()["input_ids"])


def test_a_loss_of_ones_own_takes_the_balance_loss() -> None:
    model = mixtral()
    given = {key: x for key, x in batch().items() if key != "labels"}
    with attach_balancing(model, balance=1.0) as balancing:
        model(**given)
        balancing.take_loss().backward()
        assert gradients(model)["model.layers.1.mlp.gate.weight"].any()
        with pytest.raises(ConfigError, match="taken before"):
            balancing.take_loss()
        model(**given)
        with pytest.raises(ConfigError, match="had no labels"):
            model(**given)


def test_a_tuple_as_output_gains_the_loss() -> None:
    model = mixtral()
    plain = model(**batch(), return_dict=False)[0].item()
    with attach_balancing(model, balance=1.0):
        assert model(**batch(), return_dict=False)[0].item() > plain + 0.9
