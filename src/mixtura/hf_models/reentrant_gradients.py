"""Gradients of balancing losses under reentrant checkpointing.

A layer under reentrant checkpointing records no graph in the forward pass; the backward pass runs
the layer again with a graph. In this second run the layer's balancing loss is computed again, and
attached to the router's combine weights. Its gradient is scaled by the gradient of the total loss
with respect to the first balancing loss, which autograd computes before it reaches any layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _GradientProbe(torch.autograd.Function):
    """Returns a zero; its backward pass calls a function with the gradient of this zero."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, on_gradient: Callable[[Tensor], None]) -> Tensor:
        ctx.on_gradient = on_gradient
        return torch.zeros_like(anchor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        ctx.on_gradient(gradients[0])
        return None, None


class _AttachedLoss(torch.autograd.Function):
    """Returns `values`; its backward pass also sets the gradient of `loss` to `scale`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        # A model may change these values in place, which autograd would forbid without the clone.
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0], scale, None


def gradient_probe(on_gradient: Callable[[Tensor], None], device: torch.device) -> Tensor:
    """A zero to add to a loss; the backward pass calls `on_gradient` with the zero's gradient."""
    anchor = torch.zeros((), device=device, requires_grad=True)
    zero = _GradientProbe.apply(anchor, on_gradient)
    assert isinstance(zero, Tensor)
    return zero


def with_attached_loss(values: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
    """`values`; their backward pass also runs the backward pass of `loss`, times `scale`."""
    attached = _AttachedLoss.apply(values, loss, scale.to(loss))
    assert isinstance(attached, Tensor)
    return attached
