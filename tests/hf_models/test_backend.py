"""`experts_implementation="mixtura"` against transformers' own eager experts.

T tokens, D width, K experts per token.
"""

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.hf_models.experts_classes import carrying_the_interface, decorated, tiny
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mixtura.errors import ConfigError
from mixtura.hf_models import register
from mixtura.hf_models.expert_ops import (
    segment_outer,
    segment_rows,
    swiglu_tokens_operator,
)

CLASSES = decorated()
MIXTRAL = "mixtral.modeling_mixtral.MixtralExperts"
GPT_OSS = "gpt_oss.modeling_gpt_oss.GptOssExperts"
MUSE_SPARK = "muse_spark.modeling_muse_spark.MuseSparkExperts"
# One of each kind: plain, transposed, biased and interleaved, without a gate, with a norm.
KINDS = [
    MIXTRAL,
    GPT_OSS,
    "aria.modeling_aria.AriaExperts",
    "nemotron_h.modeling_nemotron_h.NemotronHExperts",
    MUSE_SPARK,
]
TOKENS, TOP_K, NUM_EXPERTS = 9, 3, 6


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Torch fills every uninitialised tensor with NaN, so that a row nobody wrote shows."""
    register()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@dataclass
class Call:
    """What a model hands to its experts, and the gradient that comes back."""

    x_TD: Tensor
    expert_TK: Tensor
    weight_TK: Tensor
    grad_TD: Tensor


def call(width: int, dtype: torch.dtype = torch.float32, tokens: int = TOKENS) -> Call:
    """Some expert has no row: none is ever chosen after the third."""
    generator = torch.Generator().manual_seed(1)
    expert_TK = torch.rand(tokens, NUM_EXPERTS - 1, generator=generator).argsort(1)[:, :TOP_K]
    weight_TK = torch.rand(tokens, TOP_K, generator=generator)
    return Call(
        torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_(),
        expert_TK,
        weight_TK.to(dtype).requires_grad_(),
        torch.randn(tokens, width, generator=generator).to(dtype),
    )


def run(experts: Any, given: Call, implementation: str) -> dict[str, Tensor]:
    """The output, and the gradient of the input, the router's weights and every parameter."""
    experts.config._experts_implementation = implementation
    y_TD = experts(given.x_TD, given.expert_TK, given.weight_TK)
    leaves = {"x": given.x_TD, "weights": given.weight_TK, **dict(experts.named_parameters())}
    gradients = torch.autograd.grad(y_TD, list(leaves.values()), given.grad_TD.to(y_TD.dtype))
    return {"y": y_TD.detach(), **dict(zip(leaves, gradients, strict=True))}


def infer(experts: Any, given: Call, implementation: str) -> Tensor:
    experts.config._experts_implementation = implementation
    with torch.no_grad():
        return experts(given.x_TD, given.expert_TK, given.weight_TK)


def assert_near(
    found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float, within: float
) -> None:
    """`within` is a share of the largest value of each tensor."""
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        atol = within * float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("module", sorted({name.rpartition(".")[0] for name in CLASSES}))
def test_each_module_has_the_classes_that_its_source_decorates(module: str) -> None:
    stated = {name.rpartition(".")[2] for name in CLASSES if name.rpartition(".")[0] == module}
    assert carrying_the_interface(module) == stated


def test_the_search_finds_those_that_are_known() -> None:
    assert {*KINDS} <= {*CLASSES}
    assert len(CLASSES) == len({*CLASSES}) >= 60


@pytest.mark.parametrize("widths", [(5, 7), (16, 24)])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_equals_eager(name: str, widths: tuple[int, int]) -> None:
    experts, given = tiny(name, *widths), call(widths[0])
    expected = run(experts, given, "eager")
    assert float(expected["y"].abs().max()) > 0
    assert_near(run(experts, given, "mixtura"), expected, rtol=1e-5, within=2e-6)
    torch.testing.assert_close(infer(experts, given, "mixtura"), expected["y"])


@pytest.mark.parametrize("name", CLASSES)
def test_a_row_for_another_device_adds_nothing(name: str) -> None:
    # Under expert parallelism the id 6 of 6 local experts says that another rank computes the row.
    experts, given = tiny(name, 8, 12), call(8)
    lost_TK = torch.rand(TOKENS, TOP_K, generator=torch.Generator().manual_seed(2)) < 0.4
    lost_TK[0] = True
    # The same without such ids: any expert, and a weight of 0 that the router has no part in.
    kept = Call(given.x_TD, given.expert_TK, given.weight_TK, given.grad_TD)
    masked_TK = given.weight_TK.masked_fill(lost_TK, 0)
    experts.config._experts_implementation = "eager"
    leaves = [given.x_TD, given.weight_TK, *experts.parameters()]
    y_TD = experts(kept.x_TD, kept.expert_TK, masked_TK)
    expected = [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, given.grad_TD)]
    experts._is_expert_parallel = True
    given.expert_TK = given.expert_TK.masked_fill(lost_TK, NUM_EXPERTS)
    found = run(experts, given, "mixtura")
    assert not found["weights"][lost_TK].any()
    for value, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=2e-6 * float(wanted.abs().max()))
    torch.testing.assert_close(infer(experts, given, "mixtura"), expected[0])


@pytest.mark.parametrize("tokens", [1, 2, TOKENS])
@pytest.mark.parametrize("widths", [(5, 7), (16, 24)])
@pytest.mark.parametrize("name", KINDS)
def test_bf16_stays_near_fp32(name: str, widths: tuple[int, int], tokens: int) -> None:
    # The same numbers, rounded to bf16 and then computed in fp32, are the reference.
    narrow = tiny(name, *widths).bfloat16()
    given = call(widths[0], torch.bfloat16, tokens)
    wide = tiny(name, *widths).bfloat16().float()
    same = Call(
        given.x_TD.detach().float().requires_grad_(),
        given.expert_TK,
        given.weight_TK.detach().float().requires_grad_(),
        given.grad_TD.float(),
    )
    expected = run(wide, same, "eager")
    found = {name: value.float() for name, value in run(narrow, given, "mixtura").items()}
    # Each of some five roundings errs by up to 2^-9; a gate's are multiplied by what it gates.
    assert_near(found, expected, rtol=0, within=2**-5)
    y_TD = infer(narrow, given, "mixtura")
    assert y_TD.dtype == torch.bfloat16
    assert_near({"y": y_TD.float()}, {"y": expected["y"]}, rtol=0, within=2**-5)


@pytest.mark.parametrize("name", KINDS)
def test_no_tokens(name: str) -> None:
    experts, given = tiny(name, 8, 12), call(8, tokens=0)
    found = run(experts, given, "mixtura")
    assert found["y"].shape == (0, 8)
    assert not any(gradient.any() for gradient in found.values())
    narrow = tiny(name, 8, 12).bfloat16()
    assert infer(narrow, call(8, torch.bfloat16, 0), "mixtura").shape == (0, 8)


@pytest.mark.parametrize("name", KINDS)
def test_all_rows_for_other_devices(name: str) -> None:
    experts, given = tiny(name, 8, 12), call(8)
    given.expert_TK = torch.full_like(given.expert_TK, NUM_EXPERTS)
    assert not any(value.any() for value in run(experts, given, "mixtura").values())


@pytest.mark.parametrize("name", KINDS)
def test_autocast_computes_as_eager_does(name: str) -> None:
    experts, given = tiny(name, 16, 24), call(16)
    expected = run(experts, given, "eager")
    with torch.autocast("cpu", torch.bfloat16):
        found = run(experts, given, "mixtura")
        inferred = infer(experts, given, "mixtura")
    # Out as the hidden states came in, and only as near as bf16 products are.
    assert_near(found, expected, rtol=0, within=2**-5)
    assert_near({"y": inferred}, {"y": expected["y"]}, rtol=0, within=2**-5)
    assert not torch.equal(found["y"], expected["y"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", KINDS)
def test_router_weights_of_another_dtype(name: str, dtype: torch.dtype) -> None:
    experts, given = tiny(name, 16, 24), call(16)
    plain = run(experts, given, "eager")
    given.weight_TK = given.weight_TK.detach().to(dtype).requires_grad_()
    found = run(experts, given, "mixtura")
    assert found["y"].dtype == torch.float32
    assert found["weights"].dtype == dtype
    found["weights"] = found["weights"].float()
    assert_near(found, plain, rtol=0, within=2**-7)


def test_hidden_states_of_another_dtype() -> None:
    experts, given = tiny(MIXTRAL, 16, 24), call(16)
    expected = infer(experts, given, "mixtura")
    given.x_TD = given.x_TD.detach().bfloat16()
    found = infer(experts, given, "mixtura")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_frozen_experts_still_pass_a_gradient_on() -> None:
    experts, given = tiny(GPT_OSS, 8, 12), call(8)
    expected = run(experts, given, "eager")["x"]
    experts.requires_grad_(False)
    experts.config._experts_implementation = "mixtura"
    y_TD = experts(given.x_TD, given.expert_TK, given.weight_TK)
    (found,) = torch.autograd.grad(y_TD, given.x_TD, given.grad_TD)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (MIXTRAL, torch.float32),
        (MIXTRAL, torch.bfloat16),
        (GPT_OSS, torch.float32),
        (MUSE_SPARK, torch.bfloat16),
    ],
)
def test_one_graph_holds_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    # Tracing and differentiation by the compiler, without its code generator.
    torch._dynamo.reset()
    experts, given = tiny(name, 16, 24).to(dtype), call(16, dtype)
    compiled: Any = torch.compile(experts, backend="aot_eager", fullgraph=True)
    expected = run(experts, given, "mixtura")
    found_TD = compiled(given.x_TD, given.expert_TK, given.weight_TK)
    leaves = [given.x_TD, given.weight_TK, *experts.parameters()]
    gradients = torch.autograd.grad(found_TD, leaves, given.grad_TD)
    tolerance = 2e-6 if dtype == torch.float32 else 2**-6
    assert_near(
        dict(zip(expected, [found_TD.detach(), *gradients], strict=True)),
        expected,
        rtol=tolerance,
        within=tolerance,
    )
    with torch.no_grad():
        found_TD = compiled(given.x_TD, given.expert_TK, given.weight_TK)
    inferred = {"y": infer(experts, given, "mixtura")}
    assert_near({"y": found_TD}, inferred, rtol=tolerance, within=tolerance)


# Of torch 2.14's own opcheck, which reads the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("transposed", [False, True])
def test_operators_keep_the_rules_of_torchs_library(transposed: bool) -> None:
    shape = (3, 4, 6) if transposed else (3, 6, 4)
    rows_NI = torch.randn(7, 4, requires_grad=True)
    weight = torch.randn(shape, requires_grad=True)
    count_E = torch.tensor([2, 0, 3])
    torch.library.opcheck(segment_rows, (rows_NI, weight, count_E, transposed, False))
    torch.library.opcheck(segment_outer, (rows_NI.detach(), torch.randn(7, 5), count_E))
    given = call(8, torch.bfloat16)
    experts = tiny(MIXTRAL, 8, 12).bfloat16().requires_grad_(False)
    tensors = given.x_TD.detach(), given.expert_TK, given.weight_TK.detach()
    torch.library.opcheck(swiglu_tokens_operator, (*tensors, *experts.parameters()))


def test_registering_twice_changes_nothing() -> None:
    before = ALL_EXPERTS_FUNCTIONS["mixtura"]
    register()
    assert ALL_EXPERTS_FUNCTIONS["mixtura"] is before


def test_an_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "5.6.2")
    with pytest.raises(ConfigError, match=r"transformers==5\.6\.2 .* pip install 'mixtura\[hf\]'"):
        register()


def test_no_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ConfigError, match=r"needs the package 'transformers': pip install"):
        register()


def test_quantised_weights_are_refused() -> None:
    experts = tiny(MIXTRAL, 8, 12)
    experts.gate_up_proj = nn.Parameter(
        experts.gate_up_proj.detach().to(torch.float8_e4m3fn),
        requires_grad=False,
    )
    with pytest.raises(ConfigError, match=r"MixtralExperts has quantised weights .*float8_e4m3fn"):
        infer(experts, call(8), "mixtura")


def test_weights_of_another_kind_of_tensor_are_refused() -> None:
    experts = tiny(MIXTRAL, 8, 12)
    plain = experts.down_proj.detach()
    experts.down_proj = nn.Parameter(TwoTensor(plain, plain.clone()))
    with pytest.raises(ConfigError, match="keeps its weights as TwoTensor"):
        infer(experts, call(8), "mixtura")


def test_weights_of_another_shape_are_refused() -> None:
    experts = tiny(MIXTRAL, 8, 12)
    experts.num_experts = 5
    with pytest.raises(ConfigError, match=r"shape \(6, 24, 8\) for num_experts=5"):
        infer(experts, call(8), "mixtura")


def test_hidden_states_with_a_batch_are_refused() -> None:
    given = call(8)
    given.x_TD = given.x_TD.detach()[None]
    with pytest.raises(ConfigError, match=r"\(tokens, width\), not \(1, 9, 8\)"):
        infer(tiny(MIXTRAL, 8, 12), given, "mixtura")


MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 6},
    "qwen3_moe": {"num_experts": 6, "moe_intermediate_size": 12},
    "gpt_oss": {"num_local_experts": 6},
    "olmoe": {"num_experts": 6},
    "deepseek_v3": {
        "n_routed_experts": 6,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "head_dim": 8,
    },
}


def whole(family: str) -> Any:
    config = AutoConfig.for_model(
        family,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
        num_experts_per_tok=2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **{"head_dim": 16, **MODELS[family]},
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, experts_implementation="mixtura").eval()


@pytest.mark.parametrize("family", MODELS)
def test_whole_models_equal_eager(family: str) -> None:
    model = whole(family)
    ids = torch.randint(64, (2, 11))
    passes = []
    for implementation in ("eager", "mixtura"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        output = model(ids, labels=ids)
        output.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        passes.append({"logits": output.logits.detach(), **gradients})
    eager, ours = passes
    assert_near(ours, eager, rtol=1e-4, within=2e-5)
    generated = {}
    for implementation in ("eager", "mixtura"):
        model.set_experts_implementation(implementation)
        generated[implementation] = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(generated["mixtura"], generated["eager"])


# The code generator uses what torch itself has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("family", "dtype"), [("olmoe", torch.bfloat16), ("gpt_oss", torch.float32)]
)
def test_a_compiled_model_computes_the_same(family: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)
    model = whole(family).to(dtype)
    ids = torch.randint(64, (2, 11))
    compiled: Any = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        within = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(
            compiled(ids).logits, model(ids).logits, rtol=within, atol=within
        )
    loss = compiled(ids, labels=ids).loss
    torch.testing.assert_close(loss, model(ids, labels=ids).loss, rtol=within, atol=within)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(5, 7), (16, 24)])
@pytest.mark.parametrize("name", KINDS)
def test_a_gpu_equals_eager(name: str, widths: tuple[int, int], dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(False)
    experts, given = tiny(name, *widths).to("cuda", dtype), call(widths[0], dtype)
    moved = Call(
        given.x_TD.detach().cuda().requires_grad_(),
        given.expert_TK.cuda(),
        given.weight_TK.detach().cuda().requires_grad_(),
        given.grad_TD.cuda(),
    )
    expected = run(experts, moved, "eager")
    within = 1e-4 if dtype == torch.float32 else 2**-5
    assert_near(run(experts, moved, "mixtura"), expected, rtol=0, within=within)
    found = {"y": infer(experts, moved, "mixtura")}
    assert_near(found, {"y": expected["y"]}, rtol=0, within=within)
