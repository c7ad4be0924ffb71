"""Computes the share of one forward pass in the loss of an optimizer step."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

IGNORED = -100


def share_of_step(model: nn.Module, arguments: Mapping[str, Any]) -> Tensor | float:
    """The number of this pass's targets divided by that of the whole step, which Trainer counted.

    Given `num_items_in_batch`, the number for the step, a model divides the sum of its targets'
    losses by it, and Trainer adds the losses of all micro-batches. A balancing loss is a mean over
    one micro-batch, so it must be multiplied by this share before it is added. Without
    `num_items_in_batch` the training loop divides by the number of micro-batches, and the share
    is 1.
    """
    items = arguments.get("num_items_in_batch")
    labels = arguments.get("shift_labels")
    if labels is None and arguments.get("labels") is not None:
        labels = arguments["labels"][..., 1:] if _shifts(model) else arguments["labels"]
    if items is None or labels is None:
        return 1.0
    return (labels != IGNORED).sum() / items


def _shifts(model: nn.Module) -> bool:
    """Whether the model's loss leaves out each sequence's first label.

    If it does, Trainer's count leaves out these labels too.
    """
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    causal = LOSS_MAPPING.get(inner.loss_type or "") is ForCausalLMLoss
    return causal and not vars(inner.config).get("is_encoder_decoder", False)
