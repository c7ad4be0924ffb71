"""AdamW over a decoder's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mixtura.models import Decoder
from mixtura.shapes import Role
from mixtura.train.config import TrainConfig

# Norms scale, and pulling a scale to 0 silences its layer. A token's row of the embedding gets no
# gradient in most steps, so decay alone would shrink rare tokens. A gate's logits are kept small by
# the z-loss already, and decay would draw every router to an even choice.
UNDECAYED: frozenset[Role] = frozenset({"norm", "embedding", "router"})


def decayed_names(decoder: Decoder) -> set[str]:
    """Names of the parameters with weight decay: matrices, but embeddings and router gates.

    A tied head is the embedding.
    """
    spared = UNDECAYED | ({"head"} if decoder.config.tied_head else set())
    return {
        weight.name
        for weight in decoder.config.weights()
        if weight.role not in spared and len(weight.shape) >= 2
    }


def build_optimizer(decoder: Decoder, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW in two groups, with weight decay and without; the rate is set at each step."""
    decayed = decayed_names(decoder)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in decoder.named_parameters():
        groups[name in decayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.AdamW, decoder: Decoder) -> dict[str, Tensor]:
    """The optimizer's state by parameter: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step`."""
    return {
        f"{name}.{part}": value
        for name, parameter in decoder.named_parameters()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.AdamW, decoder: Decoder, tensors: Mapping[str, Tensor]
) -> None:
    """Give copies of what `optimizer_tensors` gave back to the optimizer."""
    optimizer.state.clear()
    parameters = dict(decoder.named_parameters())
    for key, value in tensors.items():
        name, _, part = key.rpartition(".")
        parameter = parameters[name]
        optimizer.state[parameter][part] = value.to(parameter.device, copy=True)
