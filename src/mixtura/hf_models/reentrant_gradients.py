"""Gradients of balancing losses under reentrant checkpointing.

A layer under reentrant checkpointing records no graph in the forward pass; the backward pass runs
the layer again with a graph. In this second run the layer's balancing loss is computed again, and
attached to the router's combine weights: their backward pass then also runs that of the loss.
The gradient of this loss is multiplied by a scale, the gradient of the total loss with respect to
the balancing loss of the forward pass. Autograd computes the scale before it reaches any layer.
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
    """Return a zero to add to a loss; its backward pass calls `on_gradient` with its gradient."""
    anchor = torch.zeros((), device=device, requires_grad=True)
    zero = _GradientProbe.apply(anchor, on_gradient)
    assert isinstance(zero, Tensor)
    return zero


def with_attached_loss(values: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
    """Return `values`; their backward pass also runs that of `loss`, with the gradient `scale`."""
    attached = _AttachedLoss.apply(values, loss, scale.to(loss))
    assert isinstance(attached, Tensor)
    return attached
