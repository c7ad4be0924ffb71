"""Attention with sinks by hand and against a loop. Letters as in models/attention.py."""

import math

import pytest
import torch
from torch import Tensor

from mixtura.models.attention import SinkAttention
from mixtura.models.attention_mask import AttentionMask, attention_mask
from mixtura.models.rotary import rotary, rotate_naive
from mixtura.shapes import AttentionShape

CPU = torch.device("cpu")


def test_a_sink_takes_its_share_and_gives_nothing() -> None:
    # Queries of 0 score every key e^0 = 1, and the sink's logit ln 2 counts as 2.
    # The first token: 1 / (1 + 2) of 3 = 1. The second: 1 / (2 + 2) of 3 and of 5 = 2.
    attention = SinkAttention(2, AttentionShape(heads=1, kv_heads=1, head_dim=2))
    with torch.no_grad():
        attention.sinks.fill_(math.log(2))
    zeros_BASC = torch.zeros(1, 1, 2, 2)
    v_BALC = torch.tensor([[3.0, -3.0], [5.0, -5.0]]).view(1, 1, 2, 2)
    out_BASC = attention.attend(zeros_BASC, zeros_BASC, v_BALC, AttentionMask(causal=True))
    torch.testing.assert_close(out_BASC[0, 0], torch.tensor([[1.0, -1.0], [2.0, -2.0]]))


def by_position(attention: SinkAttention, x_BSD: Tensor, window: int) -> Tensor:
    """Each head and position by itself, the sink as one more term of the denominator."""
    shape = attention.shape
    rope = rotary(torch.arange(x_BSD.shape[1]), shape.head_dim, shape.rope_base)
    q, k, v = attention.qkv(x_BSD).split(shape.projected, -1)
    q = rotate_naive(q.unflatten(-1, (shape.heads, -1)), rope)
    k = rotate_naive(k.unflatten(-1, (shape.kv_heads, -1)), rope)
    v = v.unflatten(-1, (shape.kv_heads, -1))
    heads: list[Tensor] = []
    for head in range(shape.heads):
        group = head // (shape.heads // shape.kv_heads)
        rows: list[Tensor] = []
        for s in range(x_BSD.shape[1]):
            first = max(0, s - window + 1)
            keys, values = (part[:, first : s + 1, group] for part in (k, v))
            scores = (keys @ q[:, s, head, :, None]).squeeze(-1) / shape.head_dim**0.5
            weights = scores.exp() / (scores.exp().sum(-1, True) + attention.sinks[head].exp())
            rows.append((weights[..., None] * values).sum(1))
        heads.append(torch.stack(rows, 1))
    return attention.out(torch.cat(heads, -1))


@pytest.mark.parametrize("window", [3, 7])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(1, 1, 2), (4, 2, 6), (3, 1, 4)])
def test_equals_the_loop_in_values_and_gradients(
    heads: int, kv_heads: int, head_dim: int, window: int
) -> None:
    torch.manual_seed(0)
    shape = AttentionShape(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_base=30.0,
        sinks=True,
        input_bias=True,
        output_bias=True,
    )
    attention = SinkAttention(5, shape)
    with torch.no_grad():
        for parameter in (attention.sinks, attention.qkv.bias, attention.out.bias):
            parameter.normal_()
    x_BSD = torch.randn(2, 7, 5, requires_grad=True)
    leaves = [x_BSD, *attention.parameters()]
    rope = rotary(torch.arange(7), head_dim, 30.0)
    found = attention(x_BSD, rope, attention_mask(7, 7, CPU, window), None)
    expected = by_position(attention, x_BSD, window)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grad_BSD = torch.randn_like(found)
    for gradient, wanted in zip(
        torch.autograd.grad(found, leaves, grad_BSD),
        torch.autograd.grad(expected, leaves, grad_BSD),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
