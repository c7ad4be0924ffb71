"""Small models of transformers and text for them: what the tests of balancing share."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "use_cache": False,
}


def mixtral(**keys: Any) -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        **{
            **SHAPE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            **keys,
        }
    )
    return MixtralForCausalLM(config).train()


def qwen(**keys: Any) -> Any:
    torch.manual_seed(0)
    own = {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8, "norm_topk_prob": True}
    config = Qwen3MoeConfig(**{**SHAPE, **own, "num_experts_per_tok": 2, **keys})
    return Qwen3MoeForCausalLM(config).train()


# transformers 5.23 gave checkpointing of activations another name.
_CHECKPOINTING = (
    "activation_checkpointing"
    if Version(transformers.__version__) >= Version("5.23")
    else "gradient_checkpointing"
)


def checkpoint_activations(model: Any, *, use_reentrant: bool) -> None:
    getattr(model, f"{_CHECKPOINTING}_enable")({"use_reentrant": use_reentrant})


def checkpointing(on: bool) -> dict[str, bool]:
    """What `TrainingArguments` is given for it."""
    return {_CHECKPOINTING: on}


def batch(sequences: int = 4, *, padded: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (sequences, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 5:] = 0
        mask[2, :3] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def collapse(model: Any, favourites: list[list[int]], strength: float = 8.0) -> None:
    """Each layer's router sends every token to its favourites, with logits of about `strength`.

    The others' are about 0. Not quite: equal logits would not tell a softmax from a sigmoid.
    """
    for layer, chosen in zip(model.model.layers, favourites, strict=True):
        layer.post_attention_layernorm = _WithOne(layer.post_attention_layernorm)
        with torch.no_grad():
            layer.mlp.gate.weight.mul_(1e-3)
            layer.mlp.gate.weight[chosen, 0] = strength


class _WithOne(nn.Module):
    """A norm whose first output is always 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return torch.cat([torch.ones_like(normed[..., :1]), normed[..., 1:]], -1)
