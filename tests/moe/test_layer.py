"""The MoE layer against a loop over tokens and experts. B sequences, S tokens each, D width."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.kernels.experts_ffn import ragged_takes
from mixtura.moe import Drop, Dropless, MoE, MoEConfig, MoEOutput, moe_layers
from mixtura.moe.experts import DenseFFN
from mixtura.moe.routers import LinearRouter
from mixtura.moe.tokens import Tokens

WIDTH = 4
SOME_BACKENDS = ["naive", "torch_loop", "torch_batched", "torch_grouped"]
BACKENDS = ["naive", "torch", "torch_loop", "torch_batched", "auto"]


def gate_of(layer: MoE) -> LinearRouter:
    assert isinstance(layer.router, LinearRouter)
    return layer.router


def build(width: int = WIDTH, seed: int = 0, **fields: Any) -> MoE:
    torch.manual_seed(seed)
    defaults = {"num_experts": 5, "top_k": 2, "expert_width": 3}
    return MoE(width, MoEConfig.parse({**defaults, **fields}))


def ffn(x_D: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    gate_F, up_F = (w_in @ x_D).chunk(2)
    return w_out @ (F.silu(gate_F) * up_F)


def by_token(layer: MoE, x_TD: Tensor) -> Tensor:
    """The definition: softmax, top-k, over their sum; a weighted sum of SwiGLU FFNs, and so on."""
    out: list[Tensor] = []
    for x_D in x_TD:
        probs_E = (gate_of(layer).weight @ x_D).softmax(-1)
        best_K = probs_E.topk(layer.config.top_k).indices.tolist()
        total = sum(probs_E[e] for e in best_K)
        out_D = torch.zeros_like(x_D)
        for e in best_K:
            out_D = out_D + probs_E[e] / total * ffn(
                x_D, layer.experts.w_in[e], layer.experts.w_out[e]
            )
        if layer.shared is not None:
            shared_D = ffn(x_D, layer.shared.w_in, layer.shared.w_out)
            if layer.shared_gate is not None:
                shared_D = (layer.shared_gate.weight[0] @ x_D).sigmoid() * shared_D
            out_D = out_D + shared_D
        if layer.residual is not None and layer.residual_mix is not None:
            c0, c1 = (layer.residual_mix.weight @ x_D).softmax(-1)
            out_D = c0 * out_D + c1 * ffn(x_D, layer.residual.w_in, layer.residual.w_out)
        out.append(out_D)
    return torch.stack(out)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"shared_width": 3},
    "shared_gate": {"shared_width": 3, "shared_gate": True},
    "residual": {"residual_width": 5},
    "everything": {"shared_width": 3, "shared_gate": True, "residual_width": 5},
    "all_experts": {"num_experts": 2},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_loop_in_values_and_gradients(variant: str, backend: str) -> None:
    layer = build(**VARIANTS[variant], backend=backend).double()
    x_BSD = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    grad_BSD = torch.randn_like(x_BSD)
    leaves = [x_BSD, *layer.parameters()]

    output = layer(x_BSD)
    assert output.hidden.shape == x_BSD.shape
    expected = by_token(layer, x_BSD.flatten(0, 1)).view_as(x_BSD)
    torch.testing.assert_close(output.hidden, expected, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(output.hidden, leaves, grad_BSD)
    wanted = torch.autograd.grad(expected, leaves, grad_BSD)
    for gradient, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["torch_grouped", "auto"])
def test_grouped_equals_the_loop_in_fp32(backend: str) -> None:
    layer = build(8, expert_width=12, shared_width=4, backend=backend)
    x_TD = torch.randn(30, 8, requires_grad=True)
    leaves = [x_TD, *layer.parameters()]
    out_TD, expected_TD = layer(x_TD).hidden, by_token(layer, x_TD)
    torch.testing.assert_close(out_TD, expected_TD, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(out_TD.square().sum(), leaves)
    wanted = torch.autograd.grad(expected_TD.square().sum(), leaves)
    for gradient, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


def test_tokens_alone_are_one_sequence() -> None:
    layer, x_TD = build(), torch.randn(6, WIDTH)
    flat, batched = layer(x_TD), layer(x_TD[None])
    assert torch.equal(flat.hidden, batched.hidden[0])
    assert flat.routing.num_sequences == batched.routing.num_sequences == 1
    assert layer(x_TD.view(3, 2, WIDTH)).routing.num_sequences == 3


def test_an_input_need_not_be_contiguous() -> None:
    layer, x_SBD = build(), torch.randn(5, 3, WIDTH)
    expected = layer(x_SBD.transpose(0, 1).contiguous()).hidden
    torch.testing.assert_close(layer(x_SBD.transpose(0, 1)).hidden, expected)


@pytest.mark.parametrize("size", [(0, WIDTH), (2, 0, WIDTH), (0, 3, WIDTH)])
@pytest.mark.parametrize("policy", ["dropless", "drop", "reroute"])
@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_no_tokens(size: tuple[int, ...], policy: str, backend: str) -> None:
    layer = build(expert_width=4, capacity={"policy": policy}, backend=backend)
    x = torch.empty(size, requires_grad=True)
    output = layer(x)
    assert output.hidden.shape == size
    (output.hidden.sum() + output.loss).backward()
    assert layer.experts.w_in.grad is not None
    assert not layer.experts.w_in.grad.any()


def test_one_token_uses_top_k_experts() -> None:
    layer = build()
    output = layer(torch.randn(1, WIDTH))
    output.hidden.square().sum().backward()
    assert layer.experts.w_in.grad is not None
    used = [e for e in range(5) if layer.experts.w_in.grad[e].any()]
    assert used == sorted(output.routing.chosen_N.tolist())
    assert len(used) == 2


def test_the_task_alone_gives_the_router_a_gradient() -> None:
    layer = build(balance={"loss": 0, "z_loss": 0})
    layer(torch.randn(6, WIDTH)).hidden.square().sum().backward()
    gradient = gate_of(layer).weight.grad
    assert gradient is not None
    assert gradient.any()


POLICIES: dict[str, dict[str, Any]] = {
    "dropless": {"policy": "dropless"},
    "drop": {"policy": "drop", "factor": 0.8},
    "reroute": {"policy": "reroute", "factor": 0.8},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_padding_gets_0_takes_no_room_and_disturbs_nobody(policy: str) -> None:
    layer = build(capacity=POLICIES[policy]).double()
    x_BSD = torch.randn(3, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    lengths = [6, 2, 0]
    valid_BS = torch.arange(6) < torch.tensor(lengths)[:, None]
    output = layer(x_BSD, valid_BS)
    assert not output.hidden[~valid_BS].any()
    for sequence, length in enumerate(lengths):
        alone = layer(x_BSD[sequence : sequence + 1, :length]).hidden[0]
        torch.testing.assert_close(output.hidden[sequence, :length], alone)

    (gradient,) = torch.autograd.grad(output.hidden.square().sum() + output.loss, x_BSD)
    assert not gradient[~valid_BS].any()
    assert gradient[valid_BS].any(-1).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_what_padding_holds_changes_nothing(policy: str) -> None:
    layer = build(capacity=POLICIES[policy])
    x_BSD = torch.randn(2, 5, WIDTH)
    valid_BS = torch.tensor([[True] * 5, [True, True, False, False, False]])
    outputs: list[MoEOutput] = []
    gradients: list[tuple[Tensor, ...]] = []
    for content in (0.0, 50.0):
        filled = x_BSD.masked_fill(~valid_BS[..., None], content)
        output = layer(filled, valid_BS)
        outputs.append(output)
        total = output.hidden.square().sum() + output.loss
        gradients.append(torch.autograd.grad(total, list(layer.parameters())))
    assert torch.equal(outputs[0].hidden, outputs[1].hidden)
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("valid", "words"),
    [
        # A transposed mask has as many values; read in the wrong order it hides other tokens.
        (torch.ones(5, 2, dtype=torch.bool), r"shape \(2, 5\), not torch.bool of shape \(5, 2\)"),
        (torch.ones(2, 4, dtype=torch.bool), r"shape \(2, 5\), not torch.bool of shape \(2, 4\)"),
        # As Hugging Face's tokenizers give it.
        (torch.ones(2, 5, dtype=torch.int64), "must be torch.bool.*not torch.int64"),
    ],
)
def test_a_mask_of_another_shape_or_dtype_is_refused(valid: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()(torch.randn(2, 5, WIDTH), valid)


@pytest.mark.parametrize("size", [(WIDTH,), (2, 3, 5, WIDTH)])
def test_an_input_of_other_dims_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"x must be .*not of shape \({size[0]},.*reshape it"):
        build()(torch.randn(size))


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_a_batch_of_padding_alone(backend: str) -> None:
    layer = build(expert_width=4, backend=backend)
    output = layer(torch.randn(2, 3, WIDTH), torch.zeros(2, 3, dtype=torch.bool))
    assert not output.hidden.any()
    (output.hidden.sum() + output.loss).backward()
    assert not any(p.grad.any() for p in layer.parameters() if p.grad is not None)


def test_a_lost_token_gets_0_and_the_residual_connection_carries_it() -> None:
    # Two copies of a token and one expert with room for ceil(0.5 * 2 / 1) = 1 row.
    layer = build(
        num_experts=1,
        top_k=1,
        router={"kind": "switch", "jitter": 0},
        capacity={"policy": "drop", "factor": 0.5},
    )
    x_TD = torch.randn(1, WIDTH).repeat(2, 1)
    out_TD = layer(x_TD).hidden
    assert out_TD[0].any()
    assert not out_TD[1].any()


def test_a_capacity_can_stand_in_for_the_configured_one() -> None:
    tight = build(capacity={"policy": "drop", "factor": 0.2})
    loose = build()
    x_BSD = torch.randn(2, 9, WIDTH)
    assert tight(x_BSD).routing.dropped_N.any()
    torch.testing.assert_close(tight(x_BSD, None, Dropless()).hidden, loose(x_BSD).hidden)
    # And back: it holds for that call alone.
    assert tight(x_BSD).routing.dropped_N.any()
    torch.testing.assert_close(loose(x_BSD, None, Drop(0.2)).hidden, tight(x_BSD).hidden)


class FullBooks(Drop):
    """A rule that is false, as a collection without members is."""

    def __len__(self) -> int:
        return 0


def test_a_capacity_that_is_false_still_stands_in() -> None:
    assert build()(torch.randn(9, WIDTH), None, FullBooks(0.2)).routing.dropped_N.any()


def test_jitter_reaches_the_router_alone() -> None:
    # One expert: its probability is 1 whatever the jitter, and so the output must not move.
    layer = build(num_experts=1, top_k=1, router={"kind": "switch", "jitter": 0.9})
    x_TD = torch.randn(8, WIDTH)
    torch.testing.assert_close(layer.train()(x_TD).hidden, layer.eval()(x_TD).hidden)


def test_state_dict_round_trip_with_the_bias() -> None:
    fields = {"router": {"kind": "sigmoid_topk"}, **VARIANTS["everything"]}
    source, target = build(seed=1, **fields), build(seed=2, **fields)
    bias_E = gate_of(source).bias
    assert bias_E is not None
    bias_E.copy_(torch.linspace(-1, 1, 5))
    saved = source.state_dict()
    assert sorted(saved) == [
        "experts.w_in",
        "experts.w_out",
        "residual.w_in",
        "residual.w_out",
        "residual_mix.weight",
        "router.bias",
        "router.weight",
        "shared.w_in",
        "shared.w_out",
        "shared_gate.weight",
    ]
    target.load_state_dict(saved)
    x_TD = torch.randn(6, WIDTH)
    assert torch.equal(target(x_TD).hidden, source(x_TD).hidden)
    assert torch.equal(target.state_dict()["router.bias"], torch.linspace(-1, 1, 5))


def test_moe_layers_are_found_in_order() -> None:
    first, second = build(), build()
    model = torch.nn.Sequential(first, torch.nn.Linear(4, 4), torch.nn.Sequential(second))
    assert moe_layers(model) == [first, second]


def wide_layer(backend: str) -> tuple[MoE, Tensor]:
    return build(32, expert_width=24, shared_width=16, backend=backend), torch.randn(2, 20, 32)


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_a_bf16_layer(backend: str) -> None:
    layer, x_BSD = wide_layer(backend)
    layer, x_BSD = layer.bfloat16(), x_BSD.bfloat16()
    output = layer(x_BSD)
    assert output.hidden.dtype == torch.bfloat16
    # The same rounded numbers in fp32: the same choice, since scores are fp32, and near values.
    exact = build(32, expert_width=24, shared_width=16)
    exact.load_state_dict({name: t.float() for name, t in layer.state_dict().items()})
    expected = exact(x_BSD.float())
    assert torch.equal(output.routing.chosen_N, expected.routing.chosen_N)
    # Some ten roundings by 2^-9 each of numbers of order 1.
    torch.testing.assert_close(output.hidden.float(), expected.hidden, rtol=0.02, atol=0.02)
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_autocast(backend: str) -> None:
    layer, x_BSD = wide_layer(backend)
    plain = layer(x_BSD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(x_BSD)
    assert cast.hidden.dtype == torch.bfloat16
    assert torch.equal(cast.routing.weight_N, plain.routing.weight_N)
    assert torch.equal(cast.loss, plain.loss)
    torch.testing.assert_close(cast.hidden.float(), plain.hidden, rtol=0.02, atol=0.02)

    (cast.hidden.float().square().sum() + cast.loss).backward()
    found = [p.grad for p in layer.parameters()]
    wanted = torch.autograd.grad(plain.hidden.square().sum() + plain.loss, list(layer.parameters()))
    for gradient, want in zip(found, wanted, strict=True):
        assert gradient is not None
        assert gradient.dtype == torch.float32
        # Sums of 40 tokens' products, each off by up to some 2^-7 of itself.
        assert (gradient - want).norm() <= 0.02 * want.norm()


@pytest.mark.parametrize("backend", SOME_BACKENDS)
def test_backward_inside_autocast_gives_the_gradients_of_one_outside(backend: str) -> None:
    layer, x_BSD = wide_layer(backend)
    parameters = list(layer.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x_BSD)
        loss = output.hidden.float().square().sum() + output.loss
        inside = torch.autograd.grad(loss, parameters, retain_graph=True)
    outside = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_float64_stays_float64_under_autocast() -> None:
    layer, x_BSD = wide_layer("torch_loop")
    layer, x_BSD = layer.double(), x_BSD.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routed = layer.experts(x_BSD[0], layer.router(Tokens(x_BSD[0])))
    assert routed.dtype == torch.float64


@pytest.mark.parametrize(
    ("dtype", "fields", "words"),
    [
        (torch.float64, {"expert_width": 4}, ["float64", "width=4"]),
        (torch.float32, {"expert_width": 3}, ["float32", "width=4", "expert_width=3"]),
        (torch.bfloat16, {"expert_width": 8}, ["bfloat16", "width=4", "expert_width=8"]),
    ],
)
def test_a_named_backend_that_cannot_is_refused(
    dtype: torch.dtype, fields: dict[str, Any], words: list[str]
) -> None:
    layer = build(**fields, backend="torch_grouped").to(dtype)
    with pytest.raises(ConfigError, match="backend=torch_grouped") as refusal:
        layer(torch.randn(3, WIDTH, dtype=dtype))
    for word in [*words, "16 bytes", "backend=torch"]:
        assert word in str(refusal.value)


def test_ragged_is_refused_in_bf16() -> None:
    layer = build(expert_width=4, backend="torch_ragged").bfloat16()
    with pytest.raises(ConfigError, match=r"backend=torch_ragged.*bfloat16.*backend=torch"):
        layer(torch.randn(3, WIDTH, dtype=torch.bfloat16))


@pytest.mark.parametrize("products", ["loop", "batched", "grouped", "ragged"])
def test_a_named_backend_is_used(products: str) -> None:
    if products == "ragged" and not ragged_takes(torch.float32, torch.device("cpu")):
        pytest.skip("this torch has no batched product of MKL's")
    layer = build(expert_width=4, backend=f"torch_{products}")
    assert layer.experts.products_for(torch.float32, torch.device("cpu")) == products


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float64, 4), (torch.float32, 5), (torch.bfloat16, 4), (torch.float32, 4)],
)
@pytest.mark.parametrize("num_experts", [5, 40])
def test_a_backend_left_open_takes_whatever_it_is_given(
    backend: str, dtype: torch.dtype, width: int, num_experts: int
) -> None:
    layer = build(width, num_experts=num_experts, expert_width=4, backend=backend).to(dtype)
    naive = build(width, num_experts=num_experts, expert_width=4, backend="naive").to(dtype)
    x_TD = torch.randn(17, width, dtype=dtype)
    torch.testing.assert_close(layer(x_TD).hidden, naive(x_TD).hidden)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"backend='torhc' is unknown.*torch_grouped"):
        build(backend="torhc")


@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu", "relu"])
def test_a_dense_ffn_is_one_expert(activation: Any) -> None:
    layer = build(num_experts=1, top_k=1, activation=activation, router={"kind": "switch"})
    dense = DenseFFN(WIDTH, 3, activation)
    with torch.no_grad():
        dense.w_in.copy_(layer.experts.w_in[0])
        dense.w_out.copy_(layer.experts.w_out[0])
    x_BSD = torch.randn(2, 3, WIDTH)
    # One expert's probability is 1.
    torch.testing.assert_close(dense(x_BSD), layer(x_BSD).hidden)


def test_outputs_start_neither_large_nor_small() -> None:
    # Inputs of variance 1 and weights of variance 1 / fan-in.
    layer = build(64, num_experts=4, expert_width=256, shared_width=256)
    scale = layer(torch.randn(64, 64)).hidden.std().item()
    assert 0.2 < scale < 2
