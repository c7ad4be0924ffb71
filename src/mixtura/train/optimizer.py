"""Builds AdamW for a model's weights, and saves and restores its state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mixtura.models import LanguageModel
from mixtura.runs.train_config import TrainConfig
from mixtura.shapes import Role

# Roles without weight decay. Decay would shrink the scales of norms towards 0. It would shrink the
# embeddings of rare tokens too, since most steps have no gradient that restores them. It would push
# every router towards even probabilities; the z-loss keeps a router's logits small without decay.
UNDECAYED: frozenset[Role] = frozenset({"norm", "embedding", "router"})


def decayed_names(decoder: LanguageModel) -> set[str]:
    """Names of the parameters with weight decay: matrices, except embeddings and router gates.

    A tied head has no weight decay, since it is also the embedding.
    """
    weights = list(decoder.config.weights())
    tied = all(weight.role != "embedding" for weight in weights)
    spared = UNDECAYED | ({"head"} if tied else set())
    return {w.name for w in weights if w.role not in spared and len(w.shape) >= 2}


def build_optimizer(decoder: LanguageModel, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW with three groups: parameters with weight decay, without it, and router gates.

    `set_rate` multiplies a group's learning rate by the group's key `share`.
    """
    decayed = decayed_names(decoder)
    gates = {weight.name for weight in decoder.config.weights() if weight.role == "router"}
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "spared": [], "gates": []}
    for name, parameter in decoder.named_parameters():
        kind = "decayed" if name in decayed else "gates" if name in gates else "spared"
        groups[kind].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if kind == "decayed" else 0.0,
                "share": config.router_lr if kind == "gates" else 1.0,
            }
            for kind, parameters in groups.items()
            if parameters
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def set_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Set the learning rate of each group to `rate` times the group's `share`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def optimizer_tensors(optimizer: torch.optim.AdamW, decoder: LanguageModel) -> dict[str, Tensor]:
    """The optimizer's state as tensors `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step`.

    NAME is the name of a parameter.
    """
    return {
        f"{name}.{part}": value
        for name, parameter in decoder.named_parameters()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.AdamW, decoder: LanguageModel, tensors: Mapping[str, Tensor]
) -> None:
    """Copy `tensors`, in the form that `optimizer_tensors` returns, to the optimizer's state."""
    optimizer.state.clear()
    parameters = dict(decoder.named_parameters())
    for key, value in tensors.items():
        name, _, part = key.rpartition(".")
        parameter = parameters[name]
        optimizer.state[parameter][part] = value.to(parameter.device, copy=True)
