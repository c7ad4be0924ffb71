"""Gradients for losses of layers that reentrant checkpointing ran without a graph.

Such a layer's forward pass has no gradients; the backward pass runs it again, with them. The loss
is then computed again and hung onto the router's weights, with the scale that the first one has in
the whole loss, which the backward pass meets before it comes to any layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Gauge(torch.autograd.Function):
    """Zero; tells the gradient that reaches it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
        ctx.tell = tell
        return torch.zeros_like(anchor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        ctx.tell(gradients[0])
        return None, None


class _Hung(torch.autograd.Function):
    """The values as they are; their backward pass gives `scale` to a loss."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        # Not a view, which a model could not write into.
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0], scale, None


def gauge(tell: Callable[[Tensor], None], device: torch.device) -> Tensor:
    """A zero to add to a loss: `tell` is given the gradient of the whole by it, in backward."""
    anchor = torch.zeros((), device=device, requires_grad=True)
    zero = _Gauge.apply(anchor, tell)
    assert isinstance(zero, Tensor)
    return zero


def hung_onto(values: Tensor, loss: Tensor, scale: Tensor) -> Tensor:
    """`values`, whose backward pass also runs that of `loss`, times `scale`."""
    hung = _Hung.apply(values, loss, scale.to(loss))
    assert isinstance(hung, Tensor)
    return hung
