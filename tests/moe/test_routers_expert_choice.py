"""Expert choice, and its causal form by thresholds. T tokens, D width, E experts.

By hand: an identity gate and x = ln p, so that softmax gives back p.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.moe.ranks import OtherRank
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mixtura.errors import ConfigError
from mixtura.moe import Drop, Dropless, MoE, MoEConfig, end_micro_step, end_step, spread_over
from mixtura.moe.load import dropped_share, load
from mixtura.moe.routers import ExpertChoice, ExpertThreshold
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

# Experts 0, 1, 2 by column.
PROBS = [[0.6, 0.1, 0.3], [0.5, 0.3, 0.2], [0.1, 0.4, 0.5]]


def config(kind: str, num_experts: int = 3, top_k: int = 1, **router: Any) -> MoEConfig:
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": 4}
    return MoEConfig.parse({**tree, "router": {"kind": kind, **router}})


def layer_of(kind: str, width: int, num_experts: int = 3, top_k: int = 1, **router: Any) -> MoE:
    torch.manual_seed(0)
    return MoE(width, config(kind, num_experts, top_k, **router)).double()


def gate(kind: str, num_experts: int = 3, top_k: int = 1, **router: Any):
    """The identity in float64: x is the logits."""
    made = layer_of(kind, num_experts, num_experts, top_k, **router).router
    assert isinstance(made, ExpertChoice | ExpertThreshold)
    with torch.no_grad():
        made.weight.copy_(torch.eye(num_experts))
    return made


def ln(probs: list[list[float]]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def rows(routing: Routing) -> list[tuple[int, int, int]]:
    columns = (routing.token_N, routing.choice_N, routing.chosen_N)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_experts_choose_by_hand() -> None:
    # k = 3 * 1 / 3 = 1. Expert 0 takes token 0 (0.6 over 0.5 and 0.1), expert 1 token 2 (0.4),
    # expert 2 token 2 (0.5), for which it is the first choice. Nobody takes token 1.
    routing = gate("expert_choice")(Tokens(ln(PROBS)))
    assert rows(routing) == [(0, 0, 0), (2, 1, 1), (2, 0, 2)]
    assert torch.equal(routing.expert_N, routing.chosen_N)
    assert routing.weight_N.tolist() == pytest.approx([0.6, 0.4, 0.5], rel=1e-12)
    assert (routing.num_tokens, routing.top_k) == (3, None)
    assert load(routing).tolist() == [1, 1, 1]


def test_two_experts_a_token_by_hand() -> None:
    # k = 3 * 2 / 3 = 2, best first: 0.6 and 0.5 of expert 0, 0.4 and 0.3 of 1, 0.5 and 0.3 of 2.
    routing = gate("expert_choice", top_k=2)(Tokens(ln(PROBS)))
    assert rows(routing) == [(0, 0, 0), (1, 0, 0), (2, 1, 1), (1, 1, 1), (2, 0, 2), (0, 1, 2)]
    assert routing.weight_N.tolist() == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.5, 0.3], rel=1e-12)


def test_a_share_is_rounded_up() -> None:
    # 4 tokens, 3 experts, 1 each: 4 / 3 is 2 rows an expert.
    assert load(gate("expert_choice")(Tokens(ln([*PROBS, PROBS[0]])))).tolist() == [2, 2, 2]


def test_the_layer_is_the_weighted_sum() -> None:
    layer, x_TD = layer_of("expert_choice", 5, top_k=2), torch.randn(6, 5, dtype=torch.float64)
    gate_ED = layer.router.get_parameter("weight")
    probs_TE = (x_TD @ gate_ED.T).softmax(-1)
    expected = torch.zeros_like(x_TD)
    for expert in range(3):
        # Six tokens, two of three experts each: the four best of each column.
        for token in probs_TE[:, expert].topk(4).indices.tolist():
            up, gated = (layer.experts.w_in[expert] @ x_TD[token]).chunk(2)
            out_D = layer.experts.w_out[expert] @ (torch.nn.functional.silu(up) * gated)
            expected[token] = expected[token] + probs_TE[token, expert] * out_D
    torch.testing.assert_close(layer(x_TD).hidden, expected)


def test_padding_is_never_taken_and_does_not_count() -> None:
    # Two of four tokens: k = 2 * 1 / 2 = 1 of the 2 rows that an expert has; the other is left.
    made = gate("expert_choice", num_experts=2)
    x_TD = ln([[0.9, 0.1], [0.6, 0.4], [0.99, 0.01], [0.01, 0.99]])
    routing = made(Tokens(x_TD, torch.tensor([True, True, False, False])))
    assert routing.chosen_N.tolist() == [0, 2, 1, 2]
    assert routing.token_N[[0, 2]].tolist() == [0, 1]
    assert routing.weight_N.tolist() == pytest.approx([0.9, 0, 0.4, 0], rel=1e-12)
    alone = made(Tokens(x_TD[:2]))
    assert (alone.chosen_N.tolist(), alone.token_N.tolist()) == ([0, 1], [0, 1])
    # A left-over row is no wish, and so no loss.
    assert not routing.dropped_N.any()


@given(st.integers(1, 4), st.integers(0, 7), st.integers(1, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_no_row_stands_twice(groups: int, size: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    torch.manual_seed(data.draw(st.integers(0, 999)))
    x_TD = torch.randn(groups * size, experts, dtype=torch.float64)
    routing = gate("expert_choice", experts, top_k)(
        Tokens(x_TD, torch.rand(len(x_TD)) < 0.7, groups)
    )
    places = list(zip(routing.token_N.tolist(), routing.choice_N.tolist(), strict=True))
    assert len(set(places)) == len(places)
    # By sequence, every expert takes its share of the tokens that are no padding.
    assert routing.valid_T is not None
    valid_B = routing.valid_T.view(groups, size).sum(1)
    taken_BE = torch.zeros(groups, experts + 1, dtype=torch.int64)
    taken_BE.index_put_(
        (routing.token_N // max(size, 1), routing.chosen_N), torch.tensor(1), accumulate=True
    )
    share_B = (valid_B * top_k / experts).ceil().long()
    assert torch.equal(taken_BE[:, :-1], share_B[:, None].expand(-1, experts))


def test_scope_sequence_heeds_no_other_sequence_and_scope_batch_does() -> None:
    # The second sequence's token 2 beats the first one's token 0 for expert 0.
    x_TD = ln([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.8, 0.2]])
    by_sequence = gate("expert_choice", 2)(Tokens(x_TD, num_sequences=2))
    assert by_sequence.token_N.tolist() == [0, 1, 2, 3]
    assert by_sequence.chosen_N.tolist() == [0, 1, 0, 1]
    by_batch = gate("expert_choice", 2, scope="batch")(Tokens(x_TD, num_sequences=2))
    assert by_batch.token_N.tolist() == [2, 3, 1, 0]
    assert by_batch.chosen_N.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_expert_choice_leaks(mode: str) -> None:
    # The first token has expert 0 at 0.6, until a last one with 0.64 takes it; and expert 2, which
    # might take it then, likes that one better too, by 0.31 to 0.3.
    layer = layer_of("expert_choice", 3).train(mode == "train")
    with torch.no_grad():
        layer.router.get_parameter("weight").copy_(torch.eye(3))
    before, after = layer(ln(PROBS)), layer(ln([*PROBS[:2], [0.64, 0.05, 0.31]]))
    assert before.hidden[0].any()
    assert not after.hidden[0].any()


def test_gradients_of_expert_choice_equal_finite_differences() -> None:
    torch.manual_seed(2)
    made = gate("expert_choice", 4, 2)
    x_TD = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    valid_T = torch.tensor([True] * 5 + [False])

    def weights(x_TD: Tensor, weight: Tensor) -> Tensor:
        routing = torch.func.functional_call(made, {"weight": weight}, (Tokens(x_TD, valid_T),))
        return routing.weight_N

    weight = made.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(weights, (x_TD, weight))


def test_another_capacity_is_refused_and_generations_is_not() -> None:
    made = gate("expert_choice")
    made(Tokens(ln(PROBS)), Dropless())
    with pytest.raises(ValueError, match=r"kind=expert_choice: capacity is built in.*dropless"):
        made(Tokens(ln(PROBS)), Drop(1.0))


def with_thresholds(thresholds: list[float], top_k: int = 1, **router: Any) -> ExpertThreshold:
    made = gate("expert_threshold", len(thresholds), top_k, **router)
    assert isinstance(made, ExpertThreshold)
    made.threshold_E.copy_(torch.tensor(thresholds))
    return made


def test_thresholds_by_hand() -> None:
    # Token 0: 0.6 and 0.3 pass, 0.1 does not. Token 1: 0.5 passes. Token 2: 0.4 and 0.5.
    routing = with_thresholds([0.45, 0.35, 0.25]).eval()(Tokens(ln(PROBS)))
    assert rows(routing) == [(0, 0, 0), (0, 1, 2), (1, 0, 0), (1, 1, 3), (2, 0, 2), (2, 1, 1)]
    assert routing.weight_N.tolist() == pytest.approx([0.6, 0.3, 0.5, 0, 0.5, 0.4], rel=1e-12)
    assert (routing.top_k, routing.num_tokens) == (2, 3)
    assert load(routing).tolist() == [2, 1, 2]


def test_a_token_may_have_no_expert() -> None:
    layer = layer_of("expert_threshold", 4)
    layer.router.get_buffer("threshold_E").fill_(1.1)
    output = layer(torch.randn(5, 4, dtype=torch.float64))
    assert not output.hidden.any()
    # Nothing was wished for, and so nothing was lost: 0, not 0 / 0.
    assert dropped_share(output.routing).item() == 0


@pytest.mark.parametrize(("most", "chosen"), [(1, [[0], [0], [2]]), (3, [[0, 2, 3], [0], [2, 1]])])
def test_most_bounds_the_experts_of_a_token(most: int, chosen: list[list[int]]) -> None:
    routing = with_thresholds([0.45, 0.35, 0.25], most=most).eval()(Tokens(ln(PROBS)))
    found = routing.chosen_N.view(3, most).tolist()
    assert [row[: len(want)] for row, want in zip(found, chosen, strict=True)] == chosen


@pytest.mark.parametrize("most", [1, 4])
def test_a_bad_bound_is_refused(most: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"router.most={most} must lie in top_k=2..num_experts=3"
    ):
        config("expert_threshold", top_k=2, most=most)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_bad_momentum_is_refused(momentum: float) -> None:
    with pytest.raises(ConfigError, match="momentum"):
        config("expert_threshold", momentum=momentum)


def test_thresholds_move_when_the_step_is_over() -> None:
    # k = ceil(3 / 3) = 1: the largest of each column, 0.6, 0.4 and 0.5.
    layer = layer_of("expert_threshold", 3, momentum=0.5)
    made = layer.router
    assert isinstance(made, ExpertThreshold)
    with torch.no_grad():
        made.weight.copy_(torch.eye(3))
    assert made.threshold_E.tolist() == pytest.approx([1 / 3] * 3)
    layer(ln(PROBS))
    assert made.threshold_E.tolist() == pytest.approx([1 / 3] * 3)
    end_step(layer)
    # The first step stands for itself.
    assert made.threshold_E.tolist() == pytest.approx([0.6, 0.4, 0.5])
    # Then 0.5 of what was, and 0.5 of the columns' maxima 0.8, 0.1, 0.1.
    layer(ln([[0.8, 0.1, 0.1]] * 2))
    end_step(layer)
    assert made.threshold_E.tolist() == pytest.approx([0.7, 0.25, 0.3])
    # Nor do evaluation and a step without tokens move them.
    layer.eval()(ln(PROBS))
    end_step(layer)
    assert made.threshold_E.tolist() == pytest.approx([0.7, 0.25, 0.3])
    assert made.steps_seen.item() == 2


def test_a_long_momentum_is_reached_step_by_step() -> None:
    # Momenta 0, 1/2, 2/3: the mean of three steps' 0.2, 0.8 and 0.5, while 0.9 is not reached.
    layer = layer_of("expert_threshold", 2, 2, momentum=0.9)
    with torch.no_grad():
        layer.router.get_parameter("weight").copy_(torch.eye(2))
    for first in (0.2, 0.8, 0.5):
        layer(ln([[first, 1 - first]]))
        end_step(layer)
    assert layer.router.get_buffer("threshold_E").tolist() == pytest.approx([0.5, 0.5])


def test_micro_steps_are_averaged_and_recomputing_changes_nothing() -> None:
    # (0.2 + 0.8) / 2, though checkpointing runs each pass twice.
    layer = layer_of("expert_threshold", 2, 2)
    with torch.no_grad():
        layer.router.get_parameter("weight").copy_(torch.eye(2))
    for first in (0.2, 0.8):
        x_TD = ln([[first, 1 - first]]).requires_grad_()
        hidden = checkpoint(lambda x_TD: layer(x_TD).hidden, x_TD, use_reentrant=False)
        assert isinstance(hidden, Tensor)
        hidden.sum().backward()
        end_micro_step(layer)
    end_step(layer)
    assert layer.router.get_buffer("threshold_E").tolist() == pytest.approx([0.5, 0.5])


def test_ranks_agree_on_thresholds() -> None:
    # Another rank saw the sums 0.6, 0.8, 0.4 in two batches: (0.6 + 0.6) / 3, and so on.
    layer = layer_of("expert_threshold", 3)
    with torch.no_grad():
        layer.router.get_parameter("weight").copy_(torch.eye(3))
    other = torch.tensor([0.6, 0.8, 0.4, 2.0])
    spread_over(layer, OtherRank(lambda of: of + other.to(of) if of.is_floating_point() else of))
    layer(ln(PROBS))
    end_step(layer)
    assert layer.router.get_buffer("threshold_E").tolist() == pytest.approx([0.4, 0.4, 0.3])


@given(st.integers(1, 8), st.integers(0, 999), st.booleans())
@settings(max_examples=40, deadline=None)
def test_later_tokens_change_nothing(split: int, seed: int, training: bool) -> None:
    layer = layer_of("expert_threshold", 5, 4, 2).train(training)
    torch.manual_seed(seed)
    for _ in range(2):
        layer(torch.randn(30, 5, dtype=torch.float64))
        end_step(layer)
    x_TD = torch.randn(9, 5, dtype=torch.float64)
    changed = torch.cat([x_TD[:split], torch.randn(9 - split, 5, dtype=torch.float64)])
    found, expected = layer(changed), layer(x_TD)
    kept = split * 4
    assert torch.equal(found.routing.chosen_N[:kept], expected.routing.chosen_N[:kept])
    torch.testing.assert_close(found.hidden[:split], expected.hidden[:split])


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (8, 2)])
def test_load_becomes_even_on_what_stays_the_same(experts: int, top_k: int) -> None:
    layer = layer_of("expert_threshold", 6, experts, top_k, most=experts)
    # A common part, so that a token's own wishes are far from even.
    common_D = torch.randn(6, dtype=torch.float64)
    for _ in range(60):
        layer(torch.randn(256, 6, dtype=torch.float64) + common_D)
        end_step(layer)
    routing = layer.eval()(torch.randn(8192, 6, dtype=torch.float64) + common_D).routing
    share_E = load(routing) / 8192
    # Of 8,192 tokens c / E; some 15 batches of 256 tell a quantile to within a tenth of itself.
    assert share_E.tolist() == pytest.approx([top_k / experts] * experts, rel=0.15)
    assert routing.probs_TE is not None
    greedy_E = routing.probs_TE.topk(top_k).indices.flatten().bincount(minlength=experts)
    assert greedy_E.max() > 1.5 * greedy_E.double().mean()


def test_gradients_of_thresholds_equal_finite_differences() -> None:
    torch.manual_seed(2)
    made = gate("expert_threshold", 4, 2).eval()
    x_TD = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def weights(x_TD: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"weight": weight}, (Tokens(x_TD),)).weight_N

    weight = made.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(weights, (x_TD, weight))


def test_thresholds_stay_fp32_and_are_saved() -> None:
    made = with_thresholds([0.1234567, 0.2, 0.3]).bfloat16()
    assert made.threshold_E.dtype == torch.float32
    assert made.threshold_E[0].item() == pytest.approx(0.1234567, rel=1e-7)
    assert {"threshold_E", "steps_seen"} <= set(made.state_dict())
