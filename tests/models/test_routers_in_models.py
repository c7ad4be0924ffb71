"""Routers in language models: what may see the future is refused, what needs ids gets them.

B sequences, S positions, V vocabulary.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig, State
from mixtura.models.historic import LstmMoE, LstmMoEConfig
from mixtura.moe import end_step, moe_layers, set_token_counts
from mixtura.moe.routers import HashConfig

VOCABULARY = 17

# Those whose balance or capacity looks at other tokens, in training at least.
ROUTERS: dict[str, dict[str, Any]] = {
    "expert_threshold": {"router": {"kind": "expert_threshold"}},
    "batchwise": {"router": {"kind": "batchwise"}},
    "base": {"router": {"kind": "base"}, "top_k": 1},
    "sinkhorn": {"router": {"kind": "sinkhorn"}},
    "hash": {"router": {"kind": "hash"}},
    "reinforce": {"router": {"kind": "reinforce"}, "top_k": 1},
}
EXPERT_CHOICE: dict[str, Any] = {"router": {"kind": "expert_choice"}}


def moe(**fields: Any) -> dict[str, Any]:
    return {"num_experts": 4, "top_k": 2, "expert_width": 8, **fields}


def decoder_config(**fields: Any) -> DecoderConfig:
    return DecoderConfig.parse(
        {
            "layers": 2,
            "width": 16,
            "vocabulary": VOCABULARY,
            "context": 32,
            "attention": {"heads": 2, "kv_heads": 1, "head_dim": 8},
            "moe": moe(**fields),
        }
    )


def lstm_config(**fields: Any) -> LstmMoEConfig:
    tree = {"width": 16, "vocabulary": VOCABULARY, "context": 32, "moe": moe(**fields)}
    return LstmMoEConfig.parse(tree)


def decoder_of(**fields: Any) -> Decoder:
    torch.manual_seed(0)
    return decoder_config(**fields).build().double()


def tokens_and_another_end() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens_BS = torch.randint(VOCABULARY, (2, 12))
    changed_BS = tokens_BS.clone()
    changed_BS[:, -4:] = (changed_BS[:, -4:] + 5) % VOCABULARY
    return tokens_BS, changed_BS


@pytest.mark.parametrize("config", [decoder_config, lstm_config])
def test_expert_choice_is_refused_with_what_to_choose(config) -> None:
    words = r"kind=expert_choice chooses by later tokens.*kind=expert_threshold.*accept_leak=true"
    with pytest.raises(ConfigError, match=words):
        config(**EXPERT_CHOICE)


def test_expert_choice_leaks_where_that_is_accepted() -> None:
    # Eight positions stand before the tokens that change.
    decoder = decoder_of(router={"kind": "expert_choice", "accept_leak": True}).eval()
    before, after = (decoder(tokens_BS).logits_BSV[:, :8] for tokens_BS in tokens_and_another_end())
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("name", ROUTERS)
def test_nothing_else_sees_the_future_in_evaluation(name: str) -> None:
    decoder = decoder_of(**ROUTERS[name]).eval()
    before, after = (decoder(tokens_BS).logits_BSV[:, :8] for tokens_BS in tokens_and_another_end())
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("name", ["expert_threshold", "hash", "batchwise, threshold"])
def test_these_do_not_in_training_either(name: str) -> None:
    fields = ROUTERS.get(name, {"router": {"kind": "batchwise", "mask": "threshold"}})
    found: list[Tensor] = []
    for tokens_BS in tokens_and_another_end():
        decoder = decoder_of(**fields).train()
        # A step before, so that thresholds have moved.
        decoder(tokens_and_another_end()[0])
        end_step(decoder)
        found.append(decoder(tokens_BS).logits_BSV[:, :8])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ROUTERS)
def test_token_by_token_is_all_at_once(name: str) -> None:
    decoder = decoder_of(**ROUTERS[name]).eval()
    tokens_BS, _ = tokens_and_another_end()
    state = State.empty(decoder.config, 2, 12, torch.float64)
    steps = [decoder(tokens_BS[:, i : i + 1], state=state).logits_BSV for i in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), decoder(tokens_BS).logits_BSV)


@pytest.mark.parametrize("config", [decoder_config, lstm_config])
def test_a_hash_learns_the_models_vocabulary(config) -> None:
    made = config(**ROUTERS["hash"])
    assert all(isinstance(shape.router, HashConfig) for shape in made.moe_shapes.values())
    model = made.build()
    tables = [layer.router.get_buffer("table_VK") for layer in moe_layers(model)]
    assert all(table.shape == (VOCABULARY, 2) for table in tables)
    tokens_BS = torch.arange(VOCABULARY)[None]
    output = model(tokens_BS)
    for layer, table in zip(output.moe, tables, strict=True):
        assert torch.equal(layer.routing.chosen_N.view(-1, 2), table)
    # The config says what was written, and is read back as it was.
    assert type(made).parse(made.model_dump(mode="json")) == made


@pytest.mark.parametrize("config", [decoder_config, lstm_config])
def test_a_hash_for_fewer_tokens_is_refused(config) -> None:
    with pytest.raises(ConfigError, match=r"router.vocabulary=16 must be .*vocabulary=17 or more"):
        config(router={"kind": "hash", "vocabulary": 16})


def test_one_call_sets_every_layers_table() -> None:
    decoder = decoder_of(router={"kind": "hash", "table": "balanced"})
    tokens_BS = torch.arange(VOCABULARY)[None]
    with pytest.raises(ConfigError, match="no token counts yet"):
        decoder(tokens_BS)
    set_token_counts(decoder, torch.arange(VOCABULARY))
    assert decoder(tokens_BS).logits_BSV.isfinite().all()


def test_an_lstm_model_takes_ids_as_well() -> None:
    model = LstmMoE(lstm_config(**ROUTERS["hash"]))
    assert model(torch.arange(VOCABULARY)[None]).logits_BSV.isfinite().all()
