"""Balancing losses and the bias, by hand. T tokens, E experts, K experts per token."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.moe.ranks import OtherRank
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixtura.errors import ConfigError
from mixtura.moe import (
    BalanceConfig,
    MoE,
    MoEConfig,
    balance_loss,
    bias_step,
    end_micro_step,
    end_step,
    spread_over,
    z_loss,
)
from mixtura.moe.load import max_over_mean
from mixtura.moe.routers import LinearRouter
from mixtura.moe.routing import Routing


def gate_of(layer: MoE) -> LinearRouter:
    assert isinstance(layer.router, LinearRouter)
    return layer.router


def bias_of(layer: MoE) -> list[float]:
    bias_E = gate_of(layer).bias
    assert bias_E is not None
    return bias_E.tolist()


def routing_of(
    chosen: list[list[int]],
    probs: list[list[float]] | Tensor,
    *,
    valid: list[bool] | None = None,
    sequences: int = 1,
    logits: list[list[float]] | None = None,
) -> Routing:
    chosen_TK = torch.tensor(chosen)
    probs_TE = torch.as_tensor(probs, dtype=torch.float64)
    return Routing.of_choices(
        chosen_TK,
        torch.ones(chosen_TK.shape),
        probs_TE.shape[1],
        # Every row is dropped: what was chosen counts all the same.
        dropped_TK=torch.ones_like(chosen_TK, dtype=torch.bool),
        logits_TE=None if logits is None else torch.tensor(logits, dtype=torch.float64),
        probs_TE=probs_TE,
        valid_T=None if valid is None else torch.tensor(valid),
        num_sequences=sequences,
    )


PROBS = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
CHOSEN = [[0], [0], [1]]


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global_batch"])
def test_balance_loss_by_hand(scope: Any) -> None:
    # f = 2/3, 1/3; P = 1.7/3, 1.3/3. 2 * (2 * 1.7 + 1 * 1.3) / 9 = 9.4 / 9.
    loss = balance_loss(routing_of(CHOSEN, PROBS), scope)
    assert loss.item() == pytest.approx(9.4 / 9, rel=1e-12)


def test_padding_counts_nowhere() -> None:
    padded = routing_of([*CHOSEN, [1]], [*PROBS, [0.5, 0.5]], valid=[True, True, True, False])
    for scope in ("sequence", "micro_batch", "global_batch"):
        assert balance_loss(padded, scope).item() == pytest.approx(9.4 / 9, rel=1e-12)


def test_scope_sequence_averages_sequences_and_micro_batch_does_not() -> None:
    # First sequence: f = 1, 0 and P = 3/4, 1/4: 2 * 3/4 = 3/2. Second: f = 0, 1, P = 1/2, 1/2: 1.
    # Together: f = 1/2, 1/2, and so 1, whatever P.
    probs = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.8, 0.2]]
    routing = routing_of([[0], [0], [1], [1]], probs, sequences=2)
    assert balance_loss(routing, "sequence").item() == pytest.approx((3 / 2 + 1) / 2, rel=1e-12)
    assert balance_loss(routing, "micro_batch").item() == pytest.approx(1, rel=1e-12)


def test_a_sequence_of_padding_alone_counts_as_even() -> None:
    # The first as above: 3/2. The second 1, whatever batch or rank it comes in.
    probs = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.8, 0.2]]
    routing = routing_of([[0], [0], [1], [1]], probs, sequences=2, valid=[True, True, False, False])
    assert balance_loss(routing, "sequence").item() == pytest.approx(5 / 4, rel=1e-12)
    nothing = routing_of([[0], [1]], PROBS[:2], valid=[False, False])
    for scope in ("sequence", "micro_batch", "global_batch"):
        assert balance_loss(nothing, scope).item() == 1


def test_no_tokens_count_as_even() -> None:
    # Not 0 / 0, which would end the training of a rank that received no token.
    empty = MoE(4, MoEConfig(num_experts=3, top_k=2, expert_width=4))
    for x in (torch.empty(0, 4), torch.empty(2, 0, 4), torch.empty(0, 3, 4)):
        losses = empty(x).losses
        found = {name: loss.item() for name, loss in losses.items()}
        assert found == pytest.approx({"balance": 0.01 * 1, "z": 0})


def even(num_experts: int, top_k: int) -> list[list[int]]:
    """E tokens, of which token t takes the experts t, t + 1, ...: each is chosen K times."""
    return [[(t + k) % num_experts for k in range(top_k)] for t in range(num_experts)]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_it_is_1_at_even_load_for_every_number_of_experts(
    num_experts: int, top_k: int, seed: int
) -> None:
    torch.manual_seed(seed)
    probs_TE = torch.randn(num_experts, num_experts, dtype=torch.float64).softmax(-1)
    routing = routing_of(even(num_experts, min(top_k, num_experts)), probs_TE)
    assert balance_loss(routing).item() == pytest.approx(1, rel=1e-12)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_it_is_1_at_even_probabilities(experts: list[int]) -> None:
    routing = routing_of([[e] for e in experts], [[0.25] * 4] * len(experts))
    assert balance_loss(routing).item() == pytest.approx(1, rel=1e-12)


def test_it_is_num_experts_over_top_k_at_collapse() -> None:
    # 5 experts, both choices always 0 and 1 with probability 1/2: 5 * 2 * (1/2 * 1/2) = 5/2.
    routing = routing_of([[0, 1]] * 4, [[0.5, 0.5, 0, 0, 0]] * 4)
    assert balance_loss(routing).item() == pytest.approx(5 / 2, rel=1e-12)


@given(st.integers(0, 999), st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(max_examples=25, deadline=None)
def test_scope_sequence_is_the_same_for_any_split_into_micro_batches(seed: int, parts: int) -> None:
    torch.manual_seed(seed)
    layer = MoE(4, MoEConfig(num_experts=5, top_k=2, expert_width=4)).double().train()
    x_BSD = torch.randn(12, 6, 4, dtype=torch.float64)
    # Down to padding alone.
    valid_BS = torch.arange(6) < torch.randint(0, 7, (12, 1))
    whole = layer(x_BSD, valid_BS).losses["balance"]
    split = [
        layer(x, valid).losses["balance"]
        for x, valid in zip(x_BSD.chunk(parts), valid_BS.chunk(parts), strict=True)
    ]
    torch.testing.assert_close(torch.stack(split).mean(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_scope_sequence_is_the_same_under_accumulation_and_checkpointing(
    use_reentrant: bool,
) -> None:
    # Four sequences, the second of padding alone, at once, and then two by two as a rank has them.
    layer = moe(balance={"loss": 1.0, "z_loss": 0}).double()
    x_BSD = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    valid_BS = torch.arange(5) < torch.tensor([5, 0, 2, 4])[:, None]

    def run(x: Tensor, valid: Tensor) -> Tensor:
        return layer(x, valid).loss

    whole = run(x_BSD, valid_BS)
    gate = gate_of(layer).weight
    (expected,) = torch.autograd.grad(whole, gate)
    total = torch.zeros((), dtype=torch.float64)
    for x, valid in zip(x_BSD.chunk(2), valid_BS.chunk(2), strict=True):
        loss = checkpoint(run, x, valid, use_reentrant=use_reentrant)
        assert isinstance(loss, Tensor)
        (loss / 2).backward()
        end_micro_step(layer)
        total += loss.detach() / 2
    torch.testing.assert_close(total, whole.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gate.grad, expected, rtol=1e-12, atol=1e-12)


def test_z_loss_by_hand() -> None:
    # logsumexp(0, 0) = ln 2 and logsumexp(ln 3, 0) = ln 4 = 2 ln 2: (1 + 4) / 2 * ln^2 2.
    logits = [[0.0, 0.0], [math.log(3), 0.0]]
    routing = routing_of([[0], [0]], PROBS[:2], logits=logits)
    assert z_loss(routing).item() == pytest.approx(2.5 * math.log(2) ** 2, rel=1e-12)
    padded = routing_of([[0]] * 3, PROBS, logits=[*logits, [9.0, 9.0]], valid=[True, True, False])
    assert z_loss(padded).item() == pytest.approx(2.5 * math.log(2) ** 2, rel=1e-12)
    nothing = routing_of([[0]] * 2, PROBS[:2], logits=logits, valid=[False, False])
    assert z_loss(nothing).item() == 0


def test_bias_step_by_hand() -> None:
    # Mean load 2: the busy expert falls, the two idle ones rise, and one at the mean stays.
    bias_E = torch.tensor([0.5, 0.0, -0.5, 0.25])
    load_E = torch.tensor([4, 1, 1, 2])
    assert bias_step(bias_E, load_E, 0.125).tolist() == [0.375, 0.125, -0.375, 0.25]
    assert bias_E.tolist() == [0.5, 0.0, -0.5, 0.25]


def test_bias_step_does_not_round_a_large_mean() -> None:
    # Beyond 2^24 fp32 skips odd numbers: the mean of 2^25 + 1 and 2^25 - 1 lies between them.
    load_E = torch.tensor([2**25 + 1, 2**25 - 1])
    assert bias_step(torch.zeros(2), load_E, 1.0).tolist() == [-1, 1]


def moe(width: int = 3, **fields: Any) -> MoE:
    defaults = {"num_experts": 3, "top_k": 2, "expert_width": 4}
    return MoE(width, MoEConfig.parse({**defaults, **fields}))


def at_expert(layer: MoE, logits: list[float]) -> Tensor:
    """One token whose logits are these: the gate becomes the identity."""
    with torch.no_grad():
        gate_of(layer).weight.copy_(torch.eye(3))
    return torch.tensor([logits])


def test_losses_are_weighted_and_named() -> None:
    layer = moe(balance={"loss": 0.5, "z_loss": 0.25, "scope": "micro_batch"})
    output = layer(torch.randn(6, 3))
    assert set(output.losses) == {"balance", "z"}
    expected = 0.5 * balance_loss(output.routing, "micro_batch")
    torch.testing.assert_close(output.losses["balance"], expected)
    torch.testing.assert_close(output.losses["z"], 0.25 * z_loss(output.routing))
    torch.testing.assert_close(output.loss, output.losses["balance"] + output.losses["z"])


def test_a_loss_of_weight_0_is_left_out() -> None:
    assert set(moe(balance={"loss": 0})(torch.randn(6, 3)).losses) == {"z"}
    assert set(moe(balance={"z_loss": 0})(torch.randn(6, 3)).losses) == {"balance"}


def test_losses_are_on_by_default_in_training_and_off_outside() -> None:
    layer, x_TD = moe(), torch.randn(6, 3)
    assert layer.balancer.weights == {"balance": 0.01, "z": 0.001}
    assert layer.config.balance.bias_rate == 0.001
    assert set(layer(x_TD).losses) == {"balance", "z"}
    output = layer.eval()(x_TD)
    assert output.losses == {}
    assert output.loss.item() == 0


@pytest.mark.parametrize("field", ["loss", "z_loss", "bias_rate"])
@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_a_bad_weight_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        BalanceConfig.parse({field: value})


@pytest.mark.parametrize("name", ["balance", "z"])
def test_the_gradient_of_each_loss_reaches_the_router_and_lowers_it(name: str) -> None:
    torch.manual_seed(0)
    layer, x_TD = moe(), torch.randn(40, 3) + 1
    before = layer(x_TD).losses[name]
    before.backward()
    gradient = gate_of(layer).weight.grad
    assert gradient is not None
    assert gradient.any()
    with torch.no_grad():
        gate_of(layer).weight.sub_(gradient / gradient.norm(), alpha=0.1)
    assert layer(x_TD).losses[name] < before


def test_global_batch_covers_the_micro_steps_so_far() -> None:
    # Logits 2, 1, 0: the token chooses 0 and 1; turned round it chooses 2 and 1.
    layer = moe(balance={"loss": 1.0, "scope": "global_batch"})
    token_TD = at_expert(layer, [2.0, 1.0, 0.0])
    p0, p1, p2 = token_TD.double().softmax(-1)[0].tolist()

    first = layer(token_TD).losses["balance"]
    assert first.item() == pytest.approx(3 * (p0 / 2 + p1 / 2))
    end_micro_step(layer)

    # The load is now 1, 2, 1 of four rows, and P is this micro-step's own: p2, p1, p0.
    second = layer(token_TD.flip(1)).losses["balance"]
    assert second.item() == pytest.approx(3 * (p2 / 4 + p1 / 2 + p0 / 4))
    end_micro_step(layer)
    (load_E,) = end_step(layer)
    assert load_E.tolist() == [1, 2, 1]

    # The next optimizer step begins afresh.
    assert layer(token_TD).losses["balance"].item() == pytest.approx(first.item())


def test_end_step_counts_the_last_micro_step_whether_or_not_it_was_closed() -> None:
    layer = moe()
    token_TD = at_expert(layer, [2.0, 1.0, 0.0])
    layer(token_TD)
    (load_E,) = end_step(layer)
    assert load_E.tolist() == [1, 1, 0]
    (load_E,) = end_step(layer)
    assert load_E.tolist() == [0, 0, 0]


def test_evaluation_counts_in_no_step() -> None:
    layer = moe().eval()
    layer(torch.randn(5, 3))
    (load_E,) = end_step(layer)
    assert load_E.tolist() == [0, 0, 0]


class Checkpointed(nn.Module):
    """An MoE, its loss and a gradient, with or without keeping what lies between."""

    def __init__(self, mode: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mode = mode
        self.moe = moe(
            balance={"loss": 1.0, "scope": "global_batch"}, router={"kind": "sigmoid_topk"}
        )

    def run(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        output = self.moe(x_TD)
        return output.hidden, output.loss

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.mode is None:
            hidden, loss = self.run(x_TD)
        else:
            kept = checkpoint(self.run, x_TD, use_reentrant=self.mode)
            assert kept is not None
            hidden, loss = kept
        return hidden.square().sum() + loss


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_counts_no_load_twice(use_reentrant: bool) -> None:
    found: list[list[Any]] = []
    for model in (Checkpointed(None), Checkpointed(use_reentrant)):
        torch.manual_seed(1)
        results: list[Any] = []
        for _ in range(3):
            x_TD = torch.randn(8, 3, requires_grad=True)
            loss = model(x_TD)
            loss.backward()
            end_micro_step(model)
            results += [loss.detach(), x_TD.grad]
        gradients = [p.grad for p in model.parameters()]
        loads = end_step(model)
        # Three micro-steps of 8 tokens, two experts each.
        assert loads[0].sum().item() == 3 * 8 * 2
        found.append([*results, *gradients, loads[0], gate_of(model.moe).bias])
    torch.testing.assert_close(found[1], found[0])


def test_a_loaded_experts_bias_falls() -> None:
    layer = moe(router={"kind": "sigmoid_topk"}, balance={"bias_rate": 0.5})
    layer(at_expert(layer, [2.0, 1.0, 0.0]).repeat(4, 1))
    end_step(layer)
    # Load 4, 4, 0 around a mean of 8/3.
    assert bias_of(layer) == [-0.5, -0.5, 0.5]


@pytest.mark.parametrize(
    "fields",
    [{"balance": {"bias_rate": 0}, "router": {"kind": "sigmoid_topk"}}, {}],
    ids=["rate 0", "no bias"],
)
def test_without_a_rate_or_a_bias_nothing_moves(fields: dict[str, Any]) -> None:
    layer = moe(**fields)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer(torch.randn(4, 3))
    end_step(layer)
    after = layer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_bias_balancing_evens_a_skewed_router() -> None:
    torch.manual_seed(0)
    layer = moe(
        width=8, num_experts=8, router={"kind": "sigmoid_topk"}, balance={"bias_rate": 0.01}
    )
    # A gate along one direction that every token has: all prefer the same experts.
    x_TD = torch.randn(256, 8) + torch.linspace(-2, 2, 8)
    imbalance: list[float] = []
    for _ in range(60):
        layer(x_TD)
        (load_E,) = end_step(layer)
        imbalance.append(max_over_mean(load_E).item())
    assert imbalance[0] > 2
    assert max(imbalance[-5:]) < 1.3


def test_the_sum_over_ranks_reaches_the_loss_the_bias_and_the_report() -> None:
    # Another rank saw the mirrored token: its load is ours turned round.
    layer = moe(
        router={"kind": "sigmoid_topk"},
        balance={"loss": 1.0, "scope": "global_batch", "bias_rate": 0.5},
    )
    spread_over(layer, OtherRank(lambda load_E: load_E + load_E.flip(0)))
    output = layer(at_expert(layer, [2.0, 1.0, 0.0]))
    assert output.routing.probs_TE is not None
    p0, p1, p2 = output.routing.probs_TE[0].tolist()
    # Loads 1, 1, 0 and 0, 1, 1: f = 1/4, 2/4, 1/4.
    assert output.losses["balance"].item() == pytest.approx(3 * (p0 / 4 + p1 / 2 + p2 / 4))
    (load_E,) = end_step(layer)
    assert load_E.tolist() == [1, 2, 1]
    assert bias_of(layer) == [0.5, -0.5, 0.5]


def test_a_layer_without_tokens_takes_part_in_the_sum_over_ranks() -> None:
    # Another rank saw loads of 3, 0, 0; were this one to skip its turn, that one would wait.
    layer = moe(router={"kind": "sigmoid_topk"}, balance={"bias_rate": 0.5})
    given: list[Tensor] = []

    def sum_over_ranks(load_E: Tensor) -> Tensor:
        given.append(load_E)
        return load_E + torch.tensor([3, 0, 0])

    spread_over(layer, OtherRank(sum_over_ranks))
    (load_E,) = end_step(layer)
    assert [load_E.tolist() for load_E in given] == [[0, 0, 0]]
    assert given[0].dtype == load_E.dtype == torch.int64
    assert load_E.tolist() == [3, 0, 0]
    # Every rank moves its bias alike.
    assert bias_of(layer) == [-0.5, 0.5, 0.5]


def test_a_step_without_tokens_moves_no_bias() -> None:
    layer = moe(router={"kind": "sigmoid_topk"}, balance={"bias_rate": 0.5})
    end_step(layer)
    assert bias_of(layer) == [0, 0, 0]
