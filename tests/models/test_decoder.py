"""The decoder: causality, padding, losses, the start. B sequences, S positions, V vocabulary."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig, State
from mixtura.moe import MoE, end_step, moe_layers
from mixtura.moe.routers import LinearRouter

MOE = {"num_experts": 5, "top_k": 2, "expert_width": 12}
BASE: dict[str, Any] = {
    "layers": 3,
    "width": 16,
    "vocabulary": 23,
    "context": 12,
    "attention": {"heads": 4, "kv_heads": 2, "head_dim": 6},
    "ffn_width": 24,
    "moe": {**MOE, "placement": {"first_dense": 1}},
}
POLICIES: dict[str, dict[str, Any]] = {
    "dropless": {"policy": "dropless"},
    "drop": {"policy": "drop", "factor": 0.7},
    "reroute": {"policy": "reroute", "factor": 0.7},
}


def gate_of(layer: MoE) -> LinearRouter:
    assert isinstance(layer.router, LinearRouter)
    return layer.router


def build(seed: int = 0, **fields: Any) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(DecoderConfig.parse({**BASE, **fields}))


def with_policy(policy: str, **fields: Any) -> Decoder:
    return build(moe={**BASE["moe"], "capacity": POLICIES[policy]}, **fields)


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(23, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_what_comes_out() -> None:
    output = build()(tokens(2, 7))
    assert output.logits_BSV.shape == (2, 7, 23)
    assert [layer is None for layer in output.layers] == [True, False, False]
    assert output.moe == [layer for layer in output.layers if layer is not None]
    assert output.moe[0].routing.num_sequences == 2
    assert set(output.losses) == {"balance", "z"}


@pytest.mark.parametrize("policy", POLICIES)
def test_no_position_sees_a_later_one(policy: str) -> None:
    decoder = with_policy(policy)
    first, second = tokens(2, 10, seed=1), tokens(2, 10, seed=2)
    assert (first[:, 6:] != second[:, 6:]).any(0).all()
    second[:, :6] = first[:, :6]
    one, other = decoder(first).logits_BSV, decoder(second).logits_BSV
    torch.testing.assert_close(one[:, :6], other[:, :6])
    assert not torch.allclose(one[:, 6:], other[:, 6:])


@pytest.mark.parametrize("policy", POLICIES)
def test_padding_at_the_end_changes_nothing_before_it(policy: str) -> None:
    decoder = with_policy(policy)
    tokens_BS = tokens(3, 9)
    lengths = [9, 4, 1]
    valid_BS = torch.arange(9) < torch.tensor(lengths)[:, None]
    padded = decoder(tokens_BS, valid_BS).logits_BSV
    for sequence, length in enumerate(lengths):
        alone = decoder(tokens_BS[sequence : sequence + 1, :length]).logits_BSV[0]
        torch.testing.assert_close(padded[sequence, :length], alone, rtol=1e-4, atol=1e-5)


LEFT_AND_RIGHT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("policy", POLICIES)
def test_padding_on_either_side_changes_nothing(policy: str) -> None:
    decoder = with_policy(policy)
    tokens_BS = tokens(3, 5)
    padded = decoder(tokens_BS, LEFT_AND_RIGHT).logits_BSV
    assert padded.isfinite().all()
    for sequence, valid_S in enumerate(LEFT_AND_RIGHT):
        alone = decoder(tokens_BS[sequence, valid_S][None]).logits_BSV[0]
        torch.testing.assert_close(padded[sequence, valid_S], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_a_cache_remembers_which_positions_are_padding(parts: list[int]) -> None:
    decoder = build().eval()
    tokens_BS = tokens(3, 9)
    valid_BS = torch.cat([LEFT_AND_RIGHT, torch.ones(3, 4, dtype=torch.bool)], 1)
    whole = decoder(tokens_BS, valid_BS).logits_BSV
    state = State.empty(decoder.config, slots=3, capacity=12)
    found, start = [], 0
    for part in parts:
        end = start + part
        found.append(decoder(tokens_BS[:, start:end], valid_BS[:, start:end], state).logits_BSV)
        start = end
    # The last four are no padding, and need not say so.
    found.append(decoder(tokens_BS[:, 5:], None, state).logits_BSV)
    shown = valid_BS[:, :, None].expand_as(whole)
    torch.testing.assert_close(torch.cat(found, 1)[shown], whole[shown], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_neighbours_in_the_batch_change_nothing(policy: str) -> None:
    decoder = with_policy(policy)
    tokens_BS = tokens(4, 8)
    together = decoder(tokens_BS).logits_BSV
    for sequence in range(4):
        alone = decoder(tokens_BS[sequence : sequence + 1]).logits_BSV[0]
        torch.testing.assert_close(together[sequence], alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_earlier_tokens_matters() -> None:
    # Attention alone sees a set: exchanging two earlier tokens would change nothing.
    last_2V = build()(torch.tensor([[3, 4, 5, 6], [4, 3, 5, 6]])).logits_BSV[:, -1]
    assert not torch.allclose(last_2V[0], last_2V[1], atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("moe", [BASE["moe"], None])
def test_the_loss_starts_near_that_of_a_guess(tied: bool, moe: dict[str, Any] | None) -> None:
    # A guess costs ln V. Logits of variance 1 add half of it: ln 500 + 1/2.
    decoder = build(vocabulary=500, width=128, context=128, tied_head=tied, moe=moe)
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(500, (8, 65), generator=generator)
    with torch.no_grad():
        logits_BSV = decoder(tokens_BS[:, :-1]).logits_BSV
    loss = F.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(500) + 0.5, abs=0.15)


@pytest.mark.parametrize("layers", [1, 24])
def test_depth_does_not_swell_the_residual_stream(layers: int) -> None:
    # The embedding has variance 1, and 2 * layers branches share at most about 1 more.
    decoder = build(layers=layers, width=64, moe=None, ffn_width=64)
    streams: list[Tensor] = []
    decoder.norm.register_forward_pre_hook(lambda _module, inputs: streams.append(inputs[0]))
    decoder(tokens(4, 12))
    assert 0.8 < streams[0].std().item() < 2


def test_a_tied_head_is_the_embedding() -> None:
    decoder = build(tied_head=True)
    names = dict(decoder.named_parameters())
    assert "head.weight" in names
    assert not any("embedding" in name for name in names)
    before = decoder(tokens(1, 4)).logits_BSV
    with torch.no_grad():
        decoder.head.weight[tokens(1, 4)[0, 0]] += 1
    # The first token's embedding moved, so every logit of its position may move, not one column.
    moved = (decoder(tokens(1, 4)).logits_BSV - before).abs() > 1e-6
    assert moved[0, 0].sum().item() > 20


@pytest.mark.parametrize("tied", [False, True])
def test_a_gradient_reaches_every_parameter(tied: bool) -> None:
    moe = {**BASE["moe"], "shared_width": 4, "shared_gate": True, "residual_width": 4}
    decoder = build(tied_head=tied, moe=moe)
    output = decoder(tokens(8, 12))
    for layer in output.moe:
        assert layer.routing.expert_N.unique().numel() == 5
    (output.logits_BSV.square().mean() + output.balance_loss).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        # Each expert by itself.
        parts = parameter.grad if ".experts." in name else parameter.grad[None]
        assert all(part.any() for part in parts), name


def test_losses_are_averaged_over_moe_layers() -> None:
    output = build()(tokens(2, 8))
    balances = [layer.losses["balance"].item() for layer in output.moe]
    assert output.losses["balance"].item() == pytest.approx(sum(balances) / 2)
    total = output.losses["balance"] + output.losses["z"]
    torch.testing.assert_close(output.balance_loss, total)


def test_two_collapsed_layers_do_not_look_balanced() -> None:
    # Layer 0 sends all to expert 0, layer 1 all to expert 1: pooled, the load is even and the loss
    # 1; by layer it is E = 2 twice. Branches that write nothing keep x as embedded: all ones.
    moe = {"num_experts": 2, "top_k": 1, "expert_width": 4, "router": {"kind": "switch"}}
    decoder = build(layers=2, moe={**moe, "balance": {"loss": 1.0, "z_loss": 0.0}})
    assert isinstance(decoder.embedding, torch.nn.Embedding)
    with torch.no_grad():
        decoder.embedding.weight.fill_(1.0)
        for name, parameter in decoder.named_parameters():
            if name.endswith(("out.weight", "w_out")):
                parameter.zero_()
        for favourite, layer in enumerate(moe_layers(decoder)):
            gate_of(layer).weight.fill_(-1.0)
            gate_of(layer).weight[favourite] = 1.0
    output = decoder(tokens(2, 8))
    assert output.losses["balance"].item() == pytest.approx(2, rel=1e-4)
    loads = end_step(decoder)
    assert [load.tolist() for load in loads] == [[16, 0], [0, 16]]


def test_outside_training_there_is_no_balance_loss() -> None:
    output = build().eval()(tokens(2, 8))
    assert output.losses == {}
    assert output.balance_loss.item() == 0
    dense = build(moe=None)(tokens(2, 8))
    assert dense.moe == []
    assert dense.balance_loss.item() == 0


def test_a_sequence_beyond_the_context_is_refused() -> None:
    decoder = build()
    decoder(tokens(1, 12))
    with pytest.raises(ConfigError, match=r"13 tokens exceeds the model's context of 12; shorten"):
        decoder(tokens(1, 13))


def test_placement_decides_which_layers_are_moes() -> None:
    decoder = build(layers=4, moe={**MOE, "placement": {"every": 2}})
    kinds = [isinstance(module, MoE) for module in (block.ffn for block in decoder.blocks)]
    assert kinds == [False, True, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    wide = {**BASE["moe"], "expert_width": 16}
    plain = build(moe=wide)
    cast = build(moe=wide).to(dtype)
    expected = plain(tokens(2, 8)).logits_BSV
    found = cast(tokens(2, 8)).logits_BSV
    assert found.dtype == dtype
    # Rotary angles are fp32 whatever the model. A bf16 router may turn a near tie, which is local.
    if dtype == torch.float64:
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
    else:
        assert (found.float() - expected).abs().mean() < 0.1


def test_autocast_trains() -> None:
    decoder = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = decoder(tokens(2, 8))
        loss = F.cross_entropy(output.logits_BSV.flatten(0, 1).float(), tokens(2, 8, 5).flatten())
    (loss + output.balance_loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_a_few_steps_learn_a_sequence_by_heart() -> None:
    decoder = build()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    tokens_BS = tokens(2, 12)
    losses: list[float] = []
    for _ in range(30):
        output = decoder(tokens_BS[:, :-1])
        loss = F.cross_entropy(output.logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())
        (loss + output.balance_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        end_step(decoder)
        losses.append(loss.item())
    assert losses[0] > 2.5
    assert losses[-1] < 0.3


def test_a_model_in_bf16_turns_in_bf16_once_it_is_trained() -> None:
    decoder = build().bfloat16()
    angles: list[torch.dtype] = []
    attention = decoder.blocks[0].get_submodule("attention")
    attention.register_forward_pre_hook(lambda _, inputs: angles.append(inputs[1].cos_SC.dtype))
    decoder(tokens(1, 3))
    decoder.eval()(tokens(1, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoder.float()(tokens(1, 3))
    assert angles == [torch.float32, torch.bfloat16, torch.float32]
