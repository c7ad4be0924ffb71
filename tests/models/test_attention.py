"""Attention against a loop over heads. B sequences, S positions, D width, C head dim."""

import pytest
import torch
from torch import Tensor

from mixtura.models.attention import Attention
from mixtura.models.attention_mask import AttentionMask
from mixtura.models.rotary import rotary, rotate_naive
from mixtura.shapes import AttentionShape


def by_head(attention: Attention, x_BSD: Tensor) -> Tensor:
    """Each query head with the key-value head of its group, position by position."""
    shape = attention.shape
    rope = rotary(torch.arange(x_BSD.shape[1]), shape.head_dim, shape.rope_base)
    q, k, v = (x_BSD @ attention.qkv.weight.T).split(shape.projected, -1)
    q = rotate_naive(q.unflatten(-1, (shape.heads, -1)), rope)
    k = rotate_naive(k.unflatten(-1, (shape.kv_heads, -1)), rope)
    v = v.unflatten(-1, (shape.kv_heads, -1))
    group = shape.heads // shape.kv_heads
    heads: list[Tensor] = []
    for head in range(shape.heads):
        rows: list[Tensor] = []
        for s in range(x_BSD.shape[1]):
            keys, values = k[:, : s + 1, head // group], v[:, : s + 1, head // group]
            scores = torch.einsum("bc,blc->bl", q[:, s, head], keys) / shape.head_dim**0.5
            rows.append(torch.einsum("bl,blc->bc", scores.softmax(-1), values))
        heads.append(torch.stack(rows, 1))
    return torch.cat(heads, -1) @ attention.out.weight.T


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 2), (2, 2, 6), (4, 2, 4), (6, 1, 8)]
)
def test_equals_the_loop_in_values_and_gradients(heads: int, kv_heads: int, head_dim: int) -> None:
    torch.manual_seed(0)
    shape = AttentionShape(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope_base=30.0)
    attention = Attention(5, shape)
    x_BSD = torch.randn(2, 7, 5, requires_grad=True)
    leaves = [x_BSD, *attention.parameters()]
    found = attention(
        x_BSD, rotary(torch.arange(7), head_dim, 30.0), AttentionMask(causal=True), None
    )
    expected = by_head(attention, x_BSD)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grad_BSD = torch.randn_like(found)
    for gradient, wanted in zip(
        torch.autograd.grad(found, leaves, grad_BSD),
        torch.autograd.grad(expected, leaves, grad_BSD),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)
