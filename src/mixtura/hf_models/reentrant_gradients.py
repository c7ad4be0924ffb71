"""Gradients for losses of layers that reentrant checkpointing ran without a graph.

Such a layer's forward pass records no graph; the backward pass runs the layer again with one. Its
loss is then computed again and attached to the router's weights. It is scaled by the gradient of
the total loss by the first loss, which autograd computes before it reaches any layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _GradientProbe(torch.autograd.Function):
    """Zero, whose backward pass gives its gradient to a function."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, on_gradient: Callable[[Tensor], None]) -> Tensor:
        ctx.on_gradient = on_gradient
        return torch.zeros_like(anchor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        ctx.on_gradient(gradients[0])
        return None, None


class _AttachedLoss(torch.autograd.Function):
    """The identity of `values`, whose backward pass also gives `scale` to a loss as gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        # A clone, since a model may write into its weights, which autograd forbids for a view.
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0], scale, None


def gradient_probe(on_gradient: Callable[[Tensor], None], device: torch.device) -> Tensor:
    """A zero to add to a loss; backward calls `on_gradient` with the gradient by this zero."""
    anchor = torch.zeros((), device=device, requires_grad=True)
    zero = _GradientProbe.apply(anchor, on_gradient)
    assert isinstance(zero, Tensor)
    return zero


def with_attached_loss(values: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
    """`values`, whose backward pass also runs that of `loss`, times `scale`."""
    attached = _AttachedLoss.apply(values, loss, scale.to(loss))
    assert isinstance(attached, Tensor)
    return attached
