"""How much of an optimizer step's loss one forward pass is."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

IGNORED = -100


def share_of_step(model: nn.Module, given: Mapping[str, Any]) -> Tensor | float:
    """This pass's share of the target tokens that Trainer counted for the whole step.

    Given `num_items_in_batch`, a model divides the sum over its own targets by that number, and
    Trainer adds up what the micro-batches give: a loss that is a mean has to be weighed like them.
    Without it, whoever accumulates divides by the number of micro-batches, and the share is 1.
    """
    items = given.get("num_items_in_batch")
    labels = given.get("shift_labels")
    if labels is None and given.get("labels") is not None:
        labels = given["labels"][..., 1:] if _shifts(model) else given["labels"]
    if items is None or labels is None:
        return 1.0
    return (labels != IGNORED).sum() / items


def _shifts(model: nn.Module) -> bool:
    """Whether the model's loss takes the first label of a row for no target, as Trainer counts."""
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    causal = LOSS_MAPPING.get(inner.loss_type or "") is ForCausalLMLoss
    return causal and not vars(inner.config).get("is_encoder_decoder", False)
