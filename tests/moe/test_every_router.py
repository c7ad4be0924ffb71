"""What holds for every router there is. B sequences, S tokens each, D width, E experts.

A kind that joins the union without joining the table here is found by the first test.
"""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtura.checkpoints.inspection import PLAIN_GATES
from mixtura.errors import ConfigError
from mixtura.moe import MoE, MoEConfig, MoEOutput, end_step
from mixtura.moe.capacity import Policy
from mixtura.moe.routers import ROUTERS as REGISTERED
from mixtura.moe.routers import RouterSpec
from mixtura.moe.routing import Routing
from mixtura.shapes import Buffer, MoEShape

WIDTH, EXPERTS, VOCABULARY = 8, 4, 11
POLICIES: tuple[Policy, ...] = get_args(Policy)

CHECKS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ROUTERS: dict[str, dict[str, Any]] = {
    "softmax_topk": {},
    "topk_softmax": {},
    "switch": {},
    "sigmoid_topk": {},
    "noisy_topk": {},
    "gshard": {},
    "dbrx": {},
    "top_p": {},
    "sparse_mixer": {},
    "deepseek_v2": {"groups": 2, "groups_kept": 1},
    "deepseek_v3": {"groups": 2, "groups_kept": 1},
    "hierarchical": {
        "groups": 2,
        "outer": {"kind": "softmax_topk", "renormalise": False},
        "inner": {"kind": "softmax_topk"},
    },
    "expert_choice": {},
    "expert_choice, batch": {"scope": "batch"},
    "expert_threshold": {},
    "batchwise": {},
    "batchwise, threshold": {"mask": "threshold"},
    "base": {},
    "sinkhorn": {},
    "hash": {"vocabulary": VOCABULARY},
    "hash, token_id": {"table": "token_id"},
    "reinforce": {},
}
# Those that may be given a choosing bias.
BIASED = ["softmax_topk", "topk_softmax", "sigmoid_topk"]
TOP_1 = {"switch", "base", "reinforce"}
# One renormalised weight is the constant 1; GShard takes two experts; one expert has no groups.
NOT_ONE_EXPERT = {
    "softmax_topk",
    "topk_softmax",
    "sigmoid_topk",
    "noisy_topk",
    "gshard",
    "dbrx",
    "sparse_mixer",
    "deepseek_v2",
    "deepseek_v3",
    "hierarchical",
    "batchwise",
}


def tree_of(name: str) -> dict[str, Any]:
    kind = name.partition(",")[0]
    return {
        "num_experts": EXPERTS,
        "top_k": 1 if kind in TOP_1 else 2,
        "expert_width": 8,
        "router": {"kind": kind, **ROUTERS[name]},
    }


def layer_of(name: str, **fields: Any) -> MoE:
    torch.manual_seed(0)
    return MoE(WIDTH, MoEConfig.parse({**tree_of(name), **fields}))


def call(layer: MoE, x: Tensor, valid: Tensor | None = None) -> MoEOutput:
    """With the same noise at each call, and an id for each token."""
    torch.manual_seed(1)
    ids = torch.arange(x[..., 0].numel()).view(x.shape[:-1]) % VOCABULARY
    return layer(x, valid, ids=ids)


def total(output: MoEOutput) -> Tensor:
    return output.hidden.float().square().sum() + output.loss


def test_the_table_names_every_kind() -> None:
    kinds = REGISTERED.values.keys()
    assert {name.partition(",")[0] for name in ROUTERS} == kinds


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ROUTERS)
def test_each_policy_works_or_is_refused_with_what_to_choose(name: str, policy: Policy) -> None:
    spec: RouterSpec = MoEConfig.parse(tree_of(name)).router
    if policy in spec.refused_policies:
        words = rf"capacity.policy={policy} under router kind={spec.name}: .*choose"
        with pytest.raises(ConfigError, match=words):
            layer_of(name, capacity={"policy": policy})
        return
    layer = layer_of(name, capacity={"policy": policy})
    x_BSD = torch.randn(3, 10, WIDTH)
    for mode in (layer.train(), layer.eval()):
        output = call(mode, x_BSD)
        assert output.hidden.isfinite().all()
        assert output.routing.weight_N.isfinite().all()
        computed_N = output.routing.expert_N < EXPERTS
        assert computed_N.any()
        assert not output.routing.weight_N[~computed_N].any()


@pytest.mark.parametrize("name", ROUTERS)
def test_the_ledger_holds_exactly_the_parameters(name: str) -> None:
    layer = layer_of(name)
    ledger = {weight.name: weight.shape for weight in layer.config.weights(WIDTH)}
    assert ledger == {name: tuple(value.shape) for name, value in layer.named_parameters()}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {}) for name in ROUTERS),
        *((name, {"choosing_bias": biased}) for name in BIASED for biased in (False, True)),
    ],
)
def test_the_ledger_holds_all_that_is_saved(name: str, fields: dict[str, Any]) -> None:
    tree = tree_of(name)
    tree["router"] |= fields
    config = MoEConfig.parse(tree)
    ledger, layer = list(config.tensors(WIDTH)), MoE(WIDTH, config)
    assert [(one.name, one.shape) for one in ledger] == [
        (name, tuple(value.shape)) for name, value in layer.state_dict().items()
    ]
    dtypes = {one.name: f"torch.{one.dtype}" for one in ledger if isinstance(one, Buffer)}
    assert dtypes == {name: str(value.dtype) for name, value in layer.named_buffers()}
    if tree["router"]["kind"] in PLAIN_GATES:
        # The ledger without torch.
        assert list(MoEShape.parse(tree).tensors(WIDTH)) == ledger


@pytest.mark.parametrize("name", ROUTERS)
def test_every_parameter_of_the_router_learns(name: str) -> None:
    layer = layer_of(name)
    for noise in layer.router.parameters():
        # A gate of zeros, as Shazeer's, sees every expert alike.
        torch.nn.init.normal_(noise, std=0.5)
    output = call(layer, torch.randn(3, 10, WIDTH))
    loss = total(output)
    if output.late_loss is not None:
        loss = loss + output.late_loss(torch.randn(30))
    loss.backward()
    for parameter in layer.router.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("size", [(0, WIDTH), (2, 0, WIDTH), (0, 3, WIDTH)])
def test_no_tokens(name: str, size: tuple[int, ...]) -> None:
    layer = layer_of(name)
    for mode in (layer.train(), layer.eval()):
        output = call(mode, torch.empty(size))
        assert output.hidden.shape == size
        assert output.routing.num_tokens == 0
    output = call(layer.train(), torch.empty(size))
    total(output).backward()
    end_step(layer)
    assert all(value.isfinite().all() for value in layer.state_dict().values())


@pytest.mark.parametrize("name", ROUTERS)
def test_one_token(name: str) -> None:
    layer = layer_of(name)
    for mode in (layer.train(), layer.eval()):
        assert call(mode, torch.randn(1, WIDTH)).hidden.isfinite().all()


@pytest.mark.parametrize("name", ROUTERS)
def test_one_expert_works_or_is_refused(name: str) -> None:
    tree = {**tree_of(name), "num_experts": 1, "top_k": 1}
    if name.partition(",")[0] in NOT_ONE_EXPERT:
        with pytest.raises(ConfigError, match=r"(top_k|num_experts)=1"):
            MoEConfig.parse(tree).check_training()
        return
    torch.manual_seed(0)
    layer, x_TD = MoE(WIDTH, MoEConfig.parse(tree)), torch.randn(5, WIDTH)
    for mode in (layer.train(), layer.eval()):
        output = call(mode, x_TD)
        assert output.routing.expert_N.tolist() == [0] * 5
        assert output.hidden.any(-1).all()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ROUTERS)
def test_what_padding_holds_changes_nothing(name: str, mode: str) -> None:
    layer = layer_of(name).train(mode == "train")
    x_BSD = torch.randn(3, 6, WIDTH)
    valid_BS = torch.arange(6) < torch.tensor([6, 3, 0])[:, None]
    found: list[tuple[Tensor, ...]] = []
    for content in (0.0, 50.0):
        filled = x_BSD.masked_fill(~valid_BS[..., None], content)
        output = call(layer, filled, valid_BS)
        assert not output.hidden[~valid_BS].any()
        parameters = [p for p in layer.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total(output), parameters, allow_unused=True)
        kept = tuple(gradient for gradient in gradients if gradient is not None)
        found.append((output.hidden.detach(), output.loss.detach(), *kept))
        end_step(layer)
        layer = layer_of(name).train(mode == "train")
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_batch_of_padding_alone(name: str) -> None:
    layer = layer_of(name)
    output = call(layer, torch.randn(2, 3, WIDTH), torch.zeros(2, 3, dtype=torch.bool))
    assert not output.hidden.any()
    loss = (
        total(output)
        if output.late_loss is None
        else total(output) + output.late_loss(torch.randn(6))
    )
    loss.backward()
    end_step(layer)
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert not any(gradient.any() for gradient in gradients)
    assert all(value.isfinite().all() for value in layer.state_dict().values())


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_think_in_fp32_under_autocast_and_in_a_bf16_model(name: str) -> None:
    layer, x_TD = layer_of(name).eval(), torch.randn(30, WIDTH)
    plain = call(layer, x_TD).routing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = call(layer, x_TD).routing
    assert torch.equal(cast.chosen_N, plain.chosen_N)
    assert torch.equal(cast.weight_N, plain.weight_N)
    half = call(layer.bfloat16(), x_TD.bfloat16()).routing
    assert half.weight_N.dtype == torch.float32
    for name_of, buffer in layer.router.named_buffers():
        assert buffer.dtype in (torch.float32, torch.int64), name_of


@st.composite
def padded_batches(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    """x_BSD of few distinct values, so that some scores tie, and valid_BS or no mask at all."""
    sequences, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    x_BSD = (
        torch.randn(sequences, length, WIDTH).mul(draw(st.sampled_from([0.0, 1.0, 4.0]))).round()
    )
    if draw(st.booleans()):
        return x_BSD, None
    lengths_B = torch.tensor(draw(st.lists(st.integers(0, length), min_size=3, max_size=3)))
    return x_BSD, torch.arange(length) < lengths_B[:sequences, None]


def served_pairs() -> list[tuple[str, Policy]]:
    specs = {name: MoEConfig.parse(tree_of(name)).router for name in ROUTERS}
    return [
        (name, policy)
        for name, spec in specs.items()
        for policy in POLICIES
        if policy not in spec.refused_policies
    ]


# An expert is assigned to the token, whatever the token wished for.
ASSIGNED = {"base", "sinkhorn"}


@pytest.mark.parametrize(("name", "policy"), served_pairs())
@given(batch=padded_batches(), factor=st.sampled_from([0.4, 1.0, 1.7]), train=st.booleans())
@settings(CHECKS, max_examples=8)
def test_rows_keep_the_policys_promise(
    name: str, policy: Policy, batch: tuple[Tensor, Tensor | None], factor: float, train: bool
) -> None:
    x_BSD, valid_BS = batch
    capacity = {"policy": policy} if policy == "dropless" else {"policy": policy, "factor": factor}
    routing = call(layer_of(name, capacity=capacity).train(train), x_BSD, valid_BS).routing
    expert_N, chosen_N, weight_N = routing.expert_N, routing.chosen_N, routing.weight_N
    has_choice_N, computed_N = routing.has_choice_N, expert_N < EXPERTS
    assert ((expert_N >= 0) & (expert_N <= EXPERTS)).all()
    assert ((chosen_N >= 0) & (chosen_N <= EXPERTS)).all()
    # Only what was wished for is computed, at most once by each expert, and nothing else weighs.
    assert not (computed_N & ~has_choice_N).any()
    pairs = (routing.token_N * EXPERTS + expert_N)[computed_N]
    assert len(pairs.unique()) == len(pairs)
    assert (weight_N >= 0).all()
    assert not weight_N[~computed_N].any()
    if policy in ("dropless", "wave"):
        assert torch.equal(computed_N, has_choice_N)
    if policy != "reroute" and not (name in ASSIGNED and train):
        assert torch.equal(expert_N[computed_N], chosen_N[computed_N])
    if policy != "dropless":
        check_capacity(routing, factor)


def check_capacity(routing: Routing, factor: float) -> None:
    """No expert takes more than ceil(factor * rows / E) rows of a sequence, in any one wave."""
    wave_N = routing.wave_N if routing.wave_N is not None else torch.zeros_like(routing.expert_N)
    for sequence in range(routing.num_sequences):
        here_N = routing.sequence_N == sequence
        # Rows that GShard gives up take room, and no longer say that they wished.
        most = int((here_N & valid_rows(routing)).sum())
        capacity = math.ceil(factor * most / EXPERTS - 1e-9)
        for wave in range(int(wave_N.max()) + 1 if len(wave_N) else 0):
            taken = routing.expert_N[here_N & (wave_N == wave)]
            load_E = torch.bincount(taken, minlength=EXPERTS + 1)[:EXPERTS]
            assert load_E.max() <= capacity


def valid_rows(routing: Routing) -> Tensor:
    if routing.valid_N is None:
        return torch.ones_like(routing.expert_N, dtype=torch.bool)
    return routing.valid_N


@pytest.mark.parametrize("name", [name for name, policy in served_pairs() if policy == "wave"])
@given(batch=padded_batches(), factor=st.sampled_from([0.4, 1.0, 1.7]), train=st.booleans())
@settings(CHECKS, max_examples=6)
def test_waves_compute_what_dropless_computes(
    name: str, batch: tuple[Tensor, Tensor | None], factor: float, train: bool
) -> None:
    x_BSD, valid_BS = batch
    hidden = [
        call(layer_of(name, capacity=capacity).train(train), x_BSD, valid_BS).hidden
        for capacity in ({"policy": "dropless"}, {"policy": "wave", "factor": factor})
    ]
    torch.testing.assert_close(*hidden)


CAUSAL = [
    (name, policy)
    for name, policy in served_pairs()
    if MoEConfig.parse(tree_of(name)).router.causal
]


@pytest.mark.parametrize(("name", "policy"), CAUSAL)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 7))
@settings(CHECKS, max_examples=8)
def test_in_evaluation_a_causal_router_knows_no_later_token(
    name: str, policy: Policy, seed: int, cut: int
) -> None:
    layer = layer_of(name, capacity={"policy": policy}).eval()
    torch.manual_seed(seed)
    x_BSD = torch.randn(2, 8, WIDTH)
    other_BSD = x_BSD.clone()
    other_BSD[:, cut:] = torch.randn(2, 8 - cut, WIDTH)
    before, after = call(layer, x_BSD).hidden, call(layer, other_BSD).hidden
    torch.testing.assert_close(after[:, :cut], before[:, :cut])
