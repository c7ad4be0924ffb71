"""`experts_implementation="mixtura-8bit"` against transformers' own eager experts.

T tokens, D width, K experts per token.
"""

from typing import Any

import pytest
import torch
from tests.hf_models.experts_classes import decorated, tiny
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig

from mixtura.errors import ConfigError
from mixtura.hf_models import pack_experts, register

# Plain; transposed, biased and interleaved; without a gate of SiLU.
PACKED = ["mixtral.modeling_mixtral.MixtralExperts", "gpt_oss.modeling_gpt_oss.GptOssExperts"]
TOKENS, NUM_EXPERTS = 9, 6
# Of a group of weights 8 bits lose the hundredth part, and 4 a tenth.
LOST = {"mixtura-8bit": 0.013, "mixtura-4bit": 0.18}


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


def run(experts: Any, implementation: str, tokens: int = TOKENS) -> torch.Tensor:
    experts.config._experts_implementation = implementation
    generator = torch.Generator().manual_seed(1)
    x_TD = torch.randn(tokens, 64, generator=generator)
    # The last number is no expert's.
    expert_TK = torch.rand(tokens, NUM_EXPERTS + 1, generator=generator).argsort(1)[:, :2]
    weight_TK = torch.rand(tokens, 2, generator=generator)
    if implementation == "eager":
        lost = expert_TK == NUM_EXPERTS
        expert_TK, weight_TK = expert_TK.masked_fill(lost, 0), weight_TK.masked_fill(lost, 0)
    with torch.no_grad():
        return experts(x_TD, expert_TK, weight_TK)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("implementation", list(LOST))
@pytest.mark.parametrize("tokens", [1, 9, 80])
def test_packed_experts_lose_what_rounding_loses(name: str, implementation: str, tokens: int):
    experts = tiny(name, 64, 96)
    eager_TD = run(experts, "eager", tokens)

    packed_TD = run(experts, implementation, tokens)

    lost = (packed_TD - eager_TD).norm() / eager_TD.norm()
    assert lost < LOST[implementation]
    # Its own weights are given up, and the second call needs none.
    assert all(parameter.is_meta for parameter in experts.parameters())
    assert torch.equal(run(experts, implementation, tokens), packed_TD)


def test_experts_with_a_gate_of_their_own_are_refused_by_name():
    refused = [name for name in decorated() if name.endswith("MuseSparkExperts")]

    with pytest.raises(ConfigError, match=r"MuseSparkExperts .* choose experts_implementation"):
        run(tiny(refused[0], 64, 96), "mixtura-8bit")


def test_other_bits_after_packing_are_refused():
    experts = tiny(PACKED[0], 64, 96)
    run(experts, "mixtura-8bit")

    with pytest.raises(ConfigError, match="packed in 8 bits, and its weights are gone"):
        run(experts, "mixtura-4bit")


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="a width of 72 does not divide into groups of 32"):
        run(tiny(PACKED[0], 72, 96), "mixtura-8bit")


def test_training_is_refused():
    model = AutoModelForCausalLM.from_config(small_olmoe(), experts_implementation="mixtura-8bit")

    with pytest.raises(ConfigError, match="packed experts have no backward pass"):
        model(torch.arange(8)[None])


def small_olmoe() -> OlmoeConfig:
    return OlmoeConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=0,
    )


def test_a_whole_model_keeps_its_logits_and_can_generate():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_olmoe()).eval()
    tokens_BS = torch.arange(12)[None]
    with torch.no_grad():
        eager = model(tokens_BS).logits
        pack_experts(model, bits=8)
        packed = model(tokens_BS).logits

    assert (packed - eager).norm() / eager.norm() < 0.02
    assert model.generate(tokens_BS, max_new_tokens=3, do_sample=False).shape == (1, 15)


def test_a_model_without_experts_is_refused():
    config = MixtralConfig(hidden_size=64, num_hidden_layers=0, vocab_size=32)
    model = AutoModelForCausalLM.from_config(config)

    with pytest.raises(ConfigError, match="MixtralForCausalLM has no experts"):
        pack_experts(model)
