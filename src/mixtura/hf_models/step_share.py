"""The share of one forward pass in the loss of an optimizer step."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

IGNORED = -100


def share_of_step(model: nn.Module, arguments: Mapping[str, Any]) -> Tensor | float:
    """This pass's share of the target tokens that Trainer counted for the whole step.

    With `num_items_in_batch` a model divides the sum over its own targets by that number, and
    Trainer adds the micro-batches' losses, so that a loss that is a mean needs the same weight.
    Without it the training loop divides by the number of micro-batches, and the share is 1.
    """
    items = arguments.get("num_items_in_batch")
    labels = arguments.get("shift_labels")
    if labels is None and arguments.get("labels") is not None:
        labels = arguments["labels"][..., 1:] if _shifts(model) else arguments["labels"]
    if items is None or labels is None:
        return 1.0
    return (labels != IGNORED).sum() / items


def _shifts(model: nn.Module) -> bool:
    """Whether the model's loss leaves out a row's first label, as Trainer's count does."""
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    causal = LOSS_MAPPING.get(inner.loss_type or "") is ForCausalLMLoss
    return causal and not vars(inner.config).get("is_encoder_decoder", False)
