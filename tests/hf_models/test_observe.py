"""What is told of a model's routing is what the model did.

T tokens, E experts, K experts per token, B sequences of S tokens.
"""

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.hf_models.small_moes import checkpoint_activations
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.output_capturing import OutputRecorder

from mixtura.errors import ConfigError
from mixtura.hf_models.observation import observe_routing
from mixtura.hf_models.routers import REFUSED, FoundRouter
from mixtura.hf_models.scores import score_behind
from mixtura.moe.load import load
from mixtura.moe.routing import Routing

# Values that a config of any family is given where it has the key.
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
    **dict.fromkeys(["hidden_size", "d_model", "intermediate_size"], 32),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "num_heads", "n_heads", "num_key_value_heads"], 4),
    **dict.fromkeys(["head_dim", "kv_lora_rank", "q_lora_rank", "v_head_dim"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim"], 8),
    "qk_head_dim": 16,
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 8),
    "moe_num_experts": 8,
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "top_k_experts"], 2),
    **dict.fromkeys(["moe_k", "moe_top_k", "moe_topk"], 2),
    "n_group": 2,
    "topk_group": 1,
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], 0),
    "decoder_sparse_step": 1,
}
ATTENTION = ["full_attention", "full_attention"]
INDEXER = {
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
}
GEMMA: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "vocab_size_per_layer_input": 64,
}
# What a family needs besides: values that its defaults leave out, and routed layers switched on.
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 2, "topk_group": 1},
    "dbrx": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "doge": {"is_moe": True},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "flint": {"mlp_only_layers": []},
    "gemma4": GEMMA,
    "gemma4_text": GEMMA,
    "granitemoehybrid": {"layer_types": ATTENTION},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "expert_layer_period": 1, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ATTENTION},
    "mimo_v2_flash": {"layer_types": ATTENTION},
    "qwen4_exp": INDEXER,
    "qwen4_exp_text": INDEXER,
}


def tiny_config(family: str) -> PreTrainedConfig:
    config = AutoConfig.for_model(family)
    parts = ("text_config", "ffn_config", "attn_config")
    for part in (config, *(vars(config).get(name) for name in parts)):
        if part is None:
            continue
        values = {key: value for key, value in TINY.items() if vars(part).get(key) is not None}
        for key, value in {**values, **SPECIAL.get(family, {})}.items():
            setattr(part, key, value)
        for key in ("layer_types", "mlp_layer_types"):
            # One layer of each of the last two kinds: dense ones come first.
            kinds = list(dict.fromkeys(vars(part).get(key) or []))[-2:]
            if kinds:
                setattr(part, key, (2 * kinds)[:2])
    return config


def routed_families() -> list[str]:
    """Families whose causal language model has a part that names where its router logits are."""
    found = []
    for config, model in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        kind = model[0] if isinstance(model, tuple) else model
        parts = vars(sys.modules[kind.__module__]).values()
        models = [p for p in parts if isinstance(p, type) and issubclass(p, PreTrainedModel)]
        if any("router_logits" in (part._can_record_outputs or {}) for part in models):
            found.append(config.model_type)
    return found


def batch() -> dict[str, Tensor]:
    """Two sequences of 6 tokens, of which the first begins with 2 of padding."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, :2] = 0
    ids = torch.randint(3, 64, (2, 6), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


@dataclass
class Witness:
    """What a model says of its own routing, and what its experts were called with."""

    observed: list[tuple[int, Routing]]
    own_logits: list[Tensor]
    handed: list[tuple[Tensor, Tensor]]
    """chosen_TK and weight_TK"""


def witnessed(family: str) -> Witness:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    for parameter in model.parameters():
        # Some routers begin with zeros, which would tell nothing.
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    handed: list[tuple[Tensor, Tensor]] = []

    def hear(_: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 3:
            handed.append((args[1], args[2]))

    for name, module in model.named_modules():
        if name.endswith("experts"):
            module.register_forward_pre_hook(hear)
    seen: list[tuple[int, Routing]] = []
    with torch.no_grad(), observe_routing(model, lambda *told: seen.append(told)):
        output = model(**batch(), output_router_logits=True)
    own = [logits_TE.flatten(0, -2) for logits_TE in output.router_logits]
    return Witness(seen, own, handed)


def check(family: str) -> None:
    witness = witnessed(family)
    layers = [layer for layer, _ in witness.observed]
    assert layers == sorted(set(layers))
    assert set(layers) <= {0, 1}
    routings = [routing for _, routing in witness.observed]
    # Models leave out the logits of layers that choose by a hash.
    own = iter(witness.own_logits)
    for routing in routings:
        if routing.probs_TE is None:
            continue
        believed = routing.probs_TE if routing.logits_TE is None else routing.logits_TE
        torch.testing.assert_close(believed, next(own).to(believed), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(routing.probs_TE.sum(-1), torch.ones(12))
    assert next(own, None) is None
    for routing, (chosen_TK, weight_TK) in zip(routings, witness.handed, strict=False):
        assert routing.chosen_N.tolist() == chosen_TK.flatten().tolist()
        valid_N = routing.has_choice_N
        assert routing.weight_N[valid_N].equal(weight_TK.flatten()[valid_N])
        # 2 of 12 tokens are padding: nobody counts them, and no expert has them.
        assert load(routing).sum() == 10 * chosen_TK.shape[1]
        assert (routing.expert_N == routing.num_experts).sum() == 2 * chosen_TK.shape[1]
    assert not witness.handed or len(witness.handed) == len(routings)
    assert routings


FAMILIES = [
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2", "deepseek_v3"),
    *("deepseek_v4", "granitemoe", "phimoe", "dbrx", "jamba", "llama4_text", "hunyuan_v1_moe"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_told_is_what_the_model_did(family: str) -> None:
    check(family)


@pytest.mark.slow
def test_every_family_is_observed_or_refused_by_name() -> None:
    refused, failed = dict[str, str](), dict[str, str]()
    for family in routed_families():
        try:
            check(family)
        except ConfigError as error:
            refused[family] = str(error)
        except Exception as error:  # noqa: BLE001
            failed[family] = f"{type(error).__name__}: {error}"
    assert not failed
    assert set(refused) == {"doge", "jetmoe", "zaya"}
    assert all(any(kind in reason for kind in REFUSED) for reason in refused.values())


def tiny_mixtral(layers: int = 2, top_k: int = 2) -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=top_k,
        use_cache=False,
    )
    return MixtralForCausalLM(config)


def test_a_decoders_blocks_are_counted_on_from_the_encoders() -> None:
    # Blocks 1 and 3 of 4 are routed, in the encoder and in the decoder: 1, 3, and 4 + 1, 4 + 3.
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_heads=2,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_experts=4,
        expert_capacity=2,
    )
    config.decoder_start_token_id = 0
    model: Any = SwitchTransformersForConditionalGeneration(config).eval()
    seen: dict[int, Routing] = {}
    with torch.no_grad(), observe_routing(model, seen.__setitem__):
        output = model(**batch(), labels=torch.full((2, 5), 7), output_router_logits=True)
    assert list(seen) == [1, 3, 5, 7]
    own = [*output.encoder_router_logits, *output.decoder_router_logits]
    for routing, logits_BSE in zip(seen.values(), own, strict=True):
        logits_TE = logits_BSE.flatten(0, 1)
        assert routing.logits_TE is not None
        assert routing.logits_TE.equal(logits_TE)
        # Without room it was wished for all the same.
        assert routing.chosen_N.tolist() == logits_TE.argmax(-1).tolist()
    # Five equal tokens to the decoder's first routed block would go to one expert with room for 2;
    # self-attention hardly tells them apart, so some are lost.
    assert sum(int(routing.dropped_N.sum()) for routing in seen.values()) > 0
    decoder = seen[5]
    assert decoder.num_sequences == 2
    assert decoder.num_tokens == 10
    assert decoder.valid_T is None


def test_logits_and_probabilities_carry_gradients() -> None:
    model = tiny_mixtral()
    seen: list[Routing] = []
    with observe_routing(model, lambda _, routing: seen.append(routing)):
        model(**batch())
    probs_TE = seen[1].probs_TE
    assert probs_TE is not None
    probs_TE[:, 0].sum().backward()
    gate = model.model.layers[1].mlp.gate.weight
    assert gate.grad is not None
    assert gate.grad.abs().sum() > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_what_is_computed_again_is_not_told_again(use_reentrant: bool) -> None:
    model = tiny_mixtral().train()
    checkpoint_activations(model, use_reentrant=use_reentrant)
    layers: list[int] = []
    runs: list[int] = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda *_: runs.append(0))
    with observe_routing(model, lambda layer, _: layers.append(layer)):
        model(**batch(), labels=batch()["input_ids"]).loss.backward()
    assert layers == [0, 1]
    # It did run twice.
    assert len(runs) == 2


def test_each_token_of_a_generation_is_told_once() -> None:
    model = tiny_mixtral().eval()
    tokens: list[int] = []
    valid: list[Any] = []

    def hear(layer: int, routing: Routing) -> None:
        if layer == 0:
            tokens.append(routing.num_tokens)
            valid.append(None if routing.valid_T is None else routing.valid_T.tolist())

    with observe_routing(model, hear):
        model.generate(
            **batch(), max_new_tokens=3, do_sample=False, use_cache=True, eos_token_id=None
        )
    # The prompt, 2 * 6, then one token of each sequence, but for the last, which nobody reads.
    assert tokens == [12, 2, 2]
    assert valid[0] == [False, False, *[True] * 10]
    assert valid[1] == [True, True]


def test_detaching_removes_every_hook() -> None:
    model = tiny_mixtral()
    told: list[int] = []

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    observation = observe_routing(model, lambda layer, _: told.append(layer))
    assert hooks() > before
    observation.detach()
    assert hooks() == before
    model(**batch())
    assert not told


def test_a_failed_forward_pass_leaves_nothing_behind() -> None:
    model = tiny_mixtral()
    told: list[int] = []
    with observe_routing(model, lambda layer, _: told.append(layer)):
        with pytest.raises(IndexError):
            model(input_ids=torch.full((1, 3), 99))
        model(**batch())
    assert told == [0, 1]


def test_a_mask_that_hides_padding_is_refused() -> None:
    model = tiny_mixtral()
    with (
        observe_routing(model, lambda *_: None),
        pytest.raises(ConfigError, match=r"attention_mask=\(2, 1, 6, 6\); give one of shape"),
    ):
        model(input_ids=batch()["input_ids"], attention_mask=torch.zeros(2, 1, 6, 6))


def test_a_router_that_is_passed_by_is_named() -> None:
    model = tiny_mixtral()
    block = model.model.layers[1].mlp
    with observe_routing(model, lambda *_: None):
        # As a fused kernel that computes the whole block would.
        block.forward = nn.Identity().forward
        with pytest.raises(
            ConfigError, match=r"layer 1: .* router model.layers.1.mlp.gate was not"
        ):
            model(**batch())


def test_a_dense_model_has_nothing_to_observe() -> None:
    with pytest.raises(ConfigError, match="Linear: names no router"):
        observe_routing(nn.Linear(1, 1), lambda *_: None)


def test_a_model_that_cannot_be_read_is_refused_by_name() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("jetmoe"))
    with pytest.raises(ConfigError, match="JetMoeTopKGating cannot be observed"):
        observe_routing(model, lambda *_: None)


def test_a_router_of_unknown_outputs_is_refused_with_them() -> None:
    # Rows sorted by expert, as JetMoE's router gives them: 3 tokens, 4 experts, top-2, 6 rows.
    router = FoundRouter(0, "layers.0.gate", "NewRouter", nn.Identity(), tiny_mixtral(), 1)
    row_N, logits_TE = torch.arange(6), torch.zeros(3, 4)
    with pytest.raises(
        ConfigError,
        match=r"layers\.0\.gate: NewRouter cannot be observed, as it gives \(int64 \(6,\), "
        r"float32 \(3, 4\), list\)",
    ):
        router.read((row_N, logits_TE, [2, 2, 1, 1]))
    # Weights alone, without the numbers of the chosen experts.
    with pytest.raises(ConfigError, match="without expert numbers"):
        router.read((logits_TE[:, :2], logits_TE))


class OneGate(PreTrainedModel):
    """A model whose one router lies in no list of blocks."""

    config_class = MixtralConfig

    def __init__(self) -> None:
        super().__init__(MixtralConfig())
        self._can_record_outputs = {"router_logits": OutputRecorder(nn.Linear)}
        self.gate = nn.Linear(4, 4)


def test_a_router_outside_a_list_of_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="router gate: lies in no list of blocks"):
        observe_routing(OneGate(), lambda *_: None)


def test_a_single_renormalised_weight_tells_nothing() -> None:
    # The weight is p / p = 1, whatever p: no score fits, and the user has to name it.
    model = tiny_mixtral(top_k=1)
    with (
        observe_routing(model, lambda *_: None),
        pytest.raises(ConfigError, match="follow none of softmax, sigmoid, sqrt_softplus"),
    ):
        model(**batch())
    with observe_routing(model, lambda *_: None, scores="softmax"):
        model(**batch())


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, -1.0, 3.0], [1.0, 1.5, -2.0]])
CHOSEN = torch.tensor([[0, 1], [2, 0], [1, 0]])


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_the_score_behind_weights_by_hand(factor: float) -> None:
    # Token 0: e^2 and e^1 over any sum are as e to 1; sigmoids are 0.881 to 0.731.
    exponential_TK = LOGITS.exp().gather(1, CHOSEN) * factor
    assert score_behind("r", LOGITS, CHOSEN, exponential_TK) == "softmax"
    sigmoid_TK = LOGITS.sigmoid().gather(1, CHOSEN) * factor
    assert score_behind("r", LOGITS, CHOSEN, sigmoid_TK) == "sigmoid"
    # As bf16 rounds them.
    assert score_behind("r", LOGITS, CHOSEN, sigmoid_TK.bfloat16()) == "sigmoid"


def test_equal_logits_do_not_tell_the_score() -> None:
    with pytest.raises(ConfigError, match="alike on this batch"):
        score_behind("r", torch.zeros(3, 3), CHOSEN, torch.full((3, 2), 0.5))
