"""Each router's choice and weights. T tokens, D width, E experts, K experts per token.

One token serves throughout: an identity gate, and x = (ln 1, ln 2, ln 5), so that the logits are
x itself, softmax gives 1/8, 2/8, 5/8, and sigmoid(ln a) = a / (1 + a) gives 1/2, 2/3, 5/6.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.moe import Drop, Dropless, MoE, MoEConfig, Reroute
from mixtura.moe.routers import LinearRouter, RouterShape
from mixtura.moe.routing import Routing
from mixtura.moe.tokens import Tokens

X_1D = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()

EVERY_KIND: list[dict[str, Any]] = [
    {"kind": "softmax_topk"},
    {"kind": "softmax_topk", "renormalise": False},
    {"kind": "softmax_topk", "choosing_bias": True},
    {"kind": "topk_softmax"},
    {"kind": "topk_softmax", "choosing_bias": True},
    {"kind": "switch"},
    {"kind": "sigmoid_topk"},
    {"kind": "sigmoid_topk", "renormalise": False, "scale": 2.5, "choosing_bias": False},
]


def build(
    router: dict[str, Any], *, width: int = 3, num_experts: int = 3, top_k: int = 2
) -> LinearRouter:
    """A router in float64; `switch` gets its one expert a token."""
    top_k = 1 if router["kind"] == "switch" else top_k
    tree = {"num_experts": num_experts, "top_k": top_k, "expert_width": 1, "router": router}
    config = MoEConfig.parse(tree).router
    made = config.build(RouterShape(width, num_experts, top_k), Dropless()).double()
    assert isinstance(made, LinearRouter)
    return made


RULES = {"dropless": Dropless(), "drop": Drop(0.7), "reroute": Reroute(0.7)}


def identity(router: dict[str, Any], bias: list[float] | None = None) -> LinearRouter:
    made = build(router).eval()
    with torch.no_grad():
        made.weight.copy_(torch.eye(3))
        if bias is not None:
            assert made.bias is not None
            made.bias.copy_(torch.tensor(bias))
    return made


@pytest.mark.parametrize(
    ("router", "experts", "weights"),
    [
        # 5/8 and 2/8 over their sum of 7/8.
        ({"kind": "softmax_topk"}, [2, 1], [5 / 7, 2 / 7]),
        ({"kind": "softmax_topk", "renormalise": False}, [2, 1], [5 / 8, 2 / 8]),
        # Softmax over ln 5 and ln 2 alone.
        ({"kind": "topk_softmax"}, [2, 1], [5 / 7, 2 / 7]),
        ({"kind": "switch"}, [2], [5 / 8]),
        # 5/6 and 2/3 over their sum of 3/2.
        ({"kind": "sigmoid_topk"}, [2, 1], [5 / 9, 4 / 9]),
        ({"kind": "sigmoid_topk", "scale": 2.5}, [2, 1], [2.5 * 5 / 9, 2.5 * 4 / 9]),
        ({"kind": "sigmoid_topk", "renormalise": False}, [2, 1], [5 / 6, 2 / 3]),
    ],
)
def test_choice_and_weights_by_hand(
    router: dict[str, Any], experts: list[int], weights: list[float]
) -> None:
    routing = identity(router)(Tokens(X_1D))
    assert routing.chosen_N.tolist() == routing.expert_N.tolist() == experts
    assert routing.weight_N.tolist() == pytest.approx(weights, rel=1e-12)


@pytest.mark.parametrize(
    ("router", "experts", "weights"),
    [
        # 1/2 + 1 = 3/2 beats 5/6 beats 2/3. Weights from 1/2 and 5/6, over 4/3.
        ({"kind": "sigmoid_topk"}, [0, 2], [3 / 8, 5 / 8]),
        # 1/8 + 1 beats 5/8 beats 2/8. Weights from 1/8 and 5/8, over 6/8.
        ({"kind": "softmax_topk", "choosing_bias": True}, [0, 2], [1 / 6, 5 / 6]),
        # It ranks by logit: ln 5 = 1.61 beats 0 + 1 beats ln 2 = 0.69.
        ({"kind": "topk_softmax", "choosing_bias": True}, [2, 0], [5 / 6, 1 / 6]),
    ],
)
def test_a_bias_chooses_and_never_weighs(
    router: dict[str, Any], experts: list[int], weights: list[float]
) -> None:
    biased = identity(router, bias=[1.0, 0.0, 0.0])(Tokens(X_1D))
    assert biased.chosen_N.tolist() == experts
    assert biased.weight_N.tolist() == pytest.approx(weights, rel=1e-12)
    plain = identity(router)(Tokens(X_1D))
    assert biased.probs_TE is not None
    assert plain.probs_TE is not None
    assert torch.equal(biased.probs_TE, plain.probs_TE)


@pytest.mark.parametrize("router", EVERY_KIND)
def test_probabilities_and_logits_by_hand(router: dict[str, Any]) -> None:
    routing = identity(router)(Tokens(X_1D))
    # Sigmoid: 1/2, 2/3, 5/6 over their sum of 2.
    sigmoid = router["kind"] == "sigmoid_topk"
    expected = [1 / 4, 1 / 3, 5 / 12] if sigmoid else [1 / 8, 2 / 8, 5 / 8]
    assert routing.probs_TE is not None
    assert routing.logits_TE is not None
    assert routing.probs_TE[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(routing.logits_TE, X_1D)


def test_rows_stand_by_token_and_then_by_choice() -> None:
    # The second token has the first one's logits turned round: ln 5, ln 2, ln 1.
    routing = identity({"kind": "softmax_topk"})(Tokens(torch.cat([X_1D, X_1D.flip(1)])))
    assert routing.token_N.tolist() == [0, 0, 1, 1]
    assert routing.choice_N.tolist() == [0, 1, 0, 1]
    assert routing.chosen_N.tolist() == [2, 1, 0, 1]
    assert routing.weight_N.tolist() == pytest.approx([5 / 7, 2 / 7, 5 / 7, 2 / 7])
    assert (routing.num_experts, routing.top_k, routing.num_tokens) == (3, 2, 2)


def test_padding_gets_no_expert_and_no_weight() -> None:
    routing = identity({"kind": "softmax_topk"})(
        Tokens(torch.cat([X_1D, X_1D]), torch.tensor([True, False]))
    )
    assert routing.expert_N.tolist() == [2, 1, 3, 3]
    assert routing.weight_N.tolist() == pytest.approx([5 / 7, 2 / 7, 0, 0])
    # Padding is not a loss.
    assert routing.dropped_N.tolist() == [False] * 4


def test_renormalised_equals_transformers_formula() -> None:
    # Softmax over all experts in fp32, the k largest, divided by their sum.
    torch.manual_seed(0)
    router = build({"kind": "softmax_topk"}, width=16, num_experts=8, top_k=3).float()
    x_TD = torch.randn(50, 16)
    routing = router(Tokens(x_TD))
    weights, experts = torch.topk((x_TD @ router.weight.T).softmax(-1), 3)
    weights = weights / weights.sum(-1, keepdim=True)
    assert torch.equal(routing.chosen_N.view(-1, 3), experts)
    torch.testing.assert_close(routing.weight_N.view(-1, 3), weights)


def test_renormalised_weights_of_hopeless_experts_are_no_nan() -> None:
    # Softmax of -200 beside 0 underflows to 0 in fp32: 0 / 0 where it were divided.
    router = build({"kind": "softmax_topk", "choosing_bias": True}).float().eval()
    with torch.no_grad():
        router.weight.copy_(torch.eye(3))
        assert router.bias is not None
        router.bias.copy_(torch.tensor([0.0, 5.0, 5.0]))
    routing = router(Tokens(torch.tensor([[0.0, -200.0, -200.0]])))
    assert sorted(routing.chosen_N.tolist()) == [1, 2]
    assert routing.weight_N.tolist() == [0.5, 0.5]


def differentiable(routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    assert routing.probs_TE is not None
    assert routing.logits_TE is not None
    return routing.weight_N, routing.probs_TE, routing.logits_TE


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("router", EVERY_KIND)
def test_gradients_equal_finite_differences(
    router: dict[str, Any], rule: Dropless | Drop | Reroute
) -> None:
    torch.manual_seed(3)
    made = build(router, width=3, num_experts=4).eval()
    x_TD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    valid_T = torch.tensor([True, True, True, True, True, False])

    def run(x_TD: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        routing = torch.func.functional_call(
            made, {"weight": weight}, (Tokens(x_TD, valid_T), rule)
        )
        return differentiable(routing)

    weight = made.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(run, (x_TD, weight))


def fp32_router(router: dict[str, Any]) -> tuple[LinearRouter, Tensor]:
    torch.manual_seed(0)
    return build(router, width=64, num_experts=8).float().eval(), torch.randn(40, 64)


@pytest.mark.parametrize("router", EVERY_KIND)
def test_scores_are_fp32_under_autocast(router: dict[str, Any]) -> None:
    made, x_TD = fp32_router(router)
    plain = made(Tokens(x_TD))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = made(Tokens(x_TD))
    for found, expected in zip(differentiable(cast), differentiable(plain), strict=True):
        assert found.dtype == torch.float32
        # Equal, not near: one bf16 product would differ in the third digit.
        assert torch.equal(found, expected)
    assert torch.equal(cast.chosen_N, plain.chosen_N)


@pytest.mark.parametrize("router", EVERY_KIND)
def test_evaluation_in_bf16_rounds_logits_and_weights(router: dict[str, Any]) -> None:
    made, x_TD = fp32_router(router)
    made, x_TD = made.bfloat16().eval(), x_TD.bfloat16()
    routing = made(Tokens(x_TD))
    assert routing.logits_TE is not None
    assert torch.equal(routing.logits_TE, torch.nn.functional.linear(x_TD, made.weight).float())
    assert torch.equal(routing.weight_N, routing.weight_N.bfloat16().float())
    assert routing.product_dtype == torch.bfloat16
    made.weighs_in_fp32 = True
    kept = made(Tokens(x_TD))
    assert kept.product_dtype == torch.float32
    torch.testing.assert_close(kept.weight_N, routing.weight_N, rtol=2**-8, atol=0)
    # A gate in fp32 is multiplied in fp32.
    wide = made.float()(Tokens(x_TD))
    torch.testing.assert_close(wide.logits_TE, x_TD.float() @ made.weight.T)
    assert wide.product_dtype == torch.float32


@pytest.mark.parametrize("router", [one for one in EVERY_KIND if one["kind"] != "switch"])
def test_scores_are_fp32_in_training_of_a_bf16_model(router: dict[str, Any]) -> None:
    made, x_TD = fp32_router(router)
    made, x_TD = made.bfloat16().train(), x_TD.bfloat16()
    routing = made(Tokens(x_TD))
    assert routing.product_dtype is None
    expected = x_TD.float() @ made.weight.float().T
    assert routing.logits_TE is not None
    assert routing.weight_N.dtype == routing.logits_TE.dtype == torch.float32
    torch.testing.assert_close(routing.logits_TE, expected)
    # Rounded to bf16 they would be off by up to 2^-9 of themselves.
    assert not torch.equal(routing.logits_TE, routing.logits_TE.bfloat16().float())


@pytest.mark.parametrize("router", [{"kind": "sigmoid_topk"}, EVERY_KIND[2]])
def test_the_choosing_bias_stays_fp32(router: dict[str, Any]) -> None:
    # bf16 has 8 bits: beside 1, a step of 0.001 is lost. 1 + 0.001 must survive every cast.
    made = build(router)
    assert made.bias is not None
    made.bias.add_(1.001)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        cast = made.to(dtype)
        assert cast.weight.dtype == dtype
        assert cast.bias is not None
        assert cast.bias.dtype == torch.float32
        assert cast.bias.tolist() == pytest.approx([1.001] * 3, rel=1e-7)


def test_the_choosing_bias_moves_to_a_device_without_data() -> None:
    made = build({"kind": "sigmoid_topk"}).to("meta")
    assert made.bias is not None
    assert made.bias.is_meta
    assert made.bfloat16().to_empty(device="cpu").bias is not None


@pytest.mark.parametrize(
    ("router", "remedy"),
    [
        ({"kind": "softmax_topk"}, "renormalise=false"),
        ({"kind": "sigmoid_topk"}, "renormalise=false"),
        ({"kind": "topk_softmax"}, "kind=softmax_topk or kind=switch"),
    ],
)
def test_one_renormalised_weight_is_refused_with_the_reason(
    router: dict[str, Any], remedy: str
) -> None:
    tree = {"num_experts": 4, "top_k": 1, "expert_width": 1, "router": router}
    layer = MoE(3, MoEConfig.parse(tree))
    # What others have trained so runs, and is not trained on.
    assert layer.eval()(torch.ones(2, 3)).routing.weight_N.tolist() == [1, 1]
    with pytest.raises(ConfigError) as refusal:
        layer.train()(torch.ones(2, 3))
    message = str(refusal.value)
    for word in ("top_k=1", f"kind={router['kind']}", "constant 1", "no gradient", remedy):
        assert word in message


def test_the_default_router_refuses_top_1_as_well() -> None:
    with pytest.raises(ConfigError, match="no gradient"):
        MoEConfig.parse({"num_experts": 4, "top_k": 1, "expert_width": 1}).check_gradient()


def test_one_weight_that_is_not_renormalised_has_a_gradient() -> None:
    router = {"kind": "softmax_topk", "renormalise": False}
    made = build(router, top_k=1)
    made(Tokens(X_1D)).weight_N.sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad.any()


def test_switch_takes_one_expert() -> None:
    with pytest.raises(ConfigError, match=r"top_k=2 under router kind=switch.*set top_k=1"):
        MoEConfig.parse(
            {"num_experts": 4, "top_k": 2, "expert_width": 1, "router": {"kind": "switch"}}
        )


@pytest.mark.parametrize("scale", [0, float("inf"), float("nan")])
def test_scale_is_above_0_and_finite(scale: float) -> None:
    router = {"kind": "sigmoid_topk", "scale": scale}
    with pytest.raises(ConfigError, match="scale"):
        MoEConfig.parse({"num_experts": 4, "top_k": 2, "expert_width": 1, "router": router})


@pytest.mark.parametrize("jitter", [-0.1, 1.0, float("nan")])
def test_jitter_lies_in_0_to_1(jitter: float) -> None:
    with pytest.raises(ConfigError, match="jitter"):
        MoEConfig.parse(
            {
                "num_experts": 4,
                "top_k": 1,
                "expert_width": 1,
                "router": {"kind": "switch", "jitter": jitter},
            }
        )


def test_jitter_scales_each_input_in_training_alone() -> None:
    # Identity gate and x = 1: the logits are the factors, within 0.8 to 1.2.
    router = identity({"kind": "switch", "jitter": 0.2})
    x_TD = torch.ones(1000, 3, dtype=torch.float64)
    logits_TE = router.train()(Tokens(x_TD)).logits_TE
    assert logits_TE is not None
    assert logits_TE.min().item() == pytest.approx(0.8, abs=0.01)
    assert logits_TE.max().item() == pytest.approx(1.2, abs=0.01)
    assert logits_TE.min().item() >= 0.8
    assert logits_TE.max().item() <= 1.2
    assert torch.equal(x_TD, torch.ones_like(x_TD))
    logits_TE = router.eval()(Tokens(x_TD)).logits_TE
    assert logits_TE is not None
    assert torch.equal(logits_TE, x_TD)


def test_no_jitter_means_none() -> None:
    router = identity({"kind": "switch", "jitter": 0.0}).train()
    logits_TE = router(Tokens(X_1D)).logits_TE
    assert logits_TE is not None
    assert torch.equal(logits_TE, X_1D)
