"""Latent attention: one way against the other, with a state and without, and by hand."""

import pytest
import torch

from mixtura.models import Decoder, DecoderConfig, State
from mixtura.models.attention_mask import AttentionMask, attention_mask
from mixtura.models.latent_attention import LatentAttention
from mixtura.models.rotary import rotary
from mixtura.models.state import LatentLayer
from mixtura.shapes import LatentAttentionShape

SHAPE = LatentAttentionShape(
    heads=3, query_rank=5, kv_rank=7, nope_dim=4, turning_dim=6, value_dim=9, input_bias=True
)


def decoder_config(shape: LatentAttentionShape = SHAPE) -> DecoderConfig:
    return DecoderConfig(
        layers=2, width=12, vocabulary=20, context=40, attention=shape, ffn_width=10
    )


@pytest.mark.parametrize("rank", [None, 5])
def test_absorbed_gives_what_expanded_gives(rank: int | None) -> None:
    torch.manual_seed(0)
    shape = SHAPE.model_copy(update={"query_rank": rank, "scale": 0.3})
    attention = LatentAttention(12, shape).double()
    q = (torch.randn(2, 4, 3, 4).double(), torch.randn(2, 4, 3, 6).double())
    latent_BLR, key_BLP = torch.randn(2, 11, 7).double(), torch.randn(2, 11, 6).double()
    valid_BL = torch.rand(2, 11) > 0.3
    for seen in (
        AttentionMask(causal=False),
        attention_mask(4, 11, torch.device("cpu"), None, valid_BL),
    ):
        wanted = attention.expanded(q, latent_BLR, key_BLP, seen)
        found = attention.absorbed(q, latent_BLR, key_BLP, seen)
        # The scores are taken in fp32.
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert found.shape == (2, 3, 4, 9)


def test_one_head_by_hand() -> None:
    # Latents 1 and 3; keys 2c = 2 and 6, values 10c = 10 and 30; the shared key is 0, query 1,
    # scale ln(3)/4: scores 2 and 6 times that differ by ln 3, so the second weighs 3 to 1.
    # 10/4 + 30 * 3/4 = 25.
    shape = LatentAttentionShape(
        heads=1, kv_rank=1, nope_dim=1, turning_dim=2, value_dim=1, scale=1.0986123 / 4
    )
    attention = LatentAttention(1, shape)
    attention.kv_up.weight.data = torch.tensor([[2.0], [10.0]])
    q = (torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 2))
    latent_BLR, key_BLP = torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 2, 2)
    for attend in (attention.expanded, attention.absorbed):
        assert attend(q, latent_BLR, key_BLP, AttentionMask(causal=False)).item() == pytest.approx(
            25.0
        )


def test_the_latents_norms_have_an_epsilon_of_their_own() -> None:
    # rms of (1, 7) is 5 and its square 25: with an epsilon of 75 it is divided by 10.
    shape = SHAPE.model_copy(update={"kv_rank": 2, "query_rank": 2, "norm_epsilon": 75.0})
    attention = LatentAttention(12, shape)
    for norm in (attention.query_norm, attention.kv_norm):
        torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([0.1, 0.7]))


@pytest.mark.parametrize("prompt", [1, 3, 9])
def test_through_the_cache_as_without(prompt: int) -> None:
    # Up to 6 new tokens are absorbed, (4 + 9) / 2; 9 are expanded.
    torch.manual_seed(0)
    decoder = Decoder(decoder_config()).eval()
    tokens_BS = torch.randint(20, (2, 14))
    with torch.no_grad():
        wanted = decoder(tokens_BS).logits_BSV
        state = State.empty(decoder.config, 2, 14)
        found = [decoder(tokens_BS[:, :prompt], None, state).logits_BSV]
        for position in range(prompt, 14):
            found.append(decoder(tokens_BS[:, position : position + 1], None, state).logits_BSV)
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-4, atol=1e-5)


def test_the_cache_keeps_the_latent_and_one_key_alone() -> None:
    # 7 + 6 numbers a position and layer, where keys and values of 3 heads are 3 * (10 + 9) = 57.
    state = State.empty(decoder_config(), 2, 5)
    assert all(isinstance(layer, LatentLayer) for layer in state.layers)
    assert [tuple(layer.kv.keys.shape) for layer in state.kv_layers] == [(2, 1, 5, 7 + 6)] * 2
    assert state.bytes == 2 * 2 * 5 * (7 + 6) * 4


def test_gradients_flow_to_every_weight() -> None:
    torch.manual_seed(0)
    attention = LatentAttention(12, SHAPE)
    rope = rotary(torch.arange(5), SHAPE.turning_dim, 30.0)
    attention(
        torch.randn(2, 5, 12), rope, AttentionMask(causal=True), None
    ).square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
