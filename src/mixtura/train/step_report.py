"""The results of one optimizer step, and the sums from which they are computed. E experts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.models import DecoderOutput
from mixtura.moe.load import dropped_share, max_over_mean
from mixtura.ranks import ONE_RANK, Ranks
from mixtura.train.load_watch import Alarm


@dataclass(frozen=True, slots=True)
class StepReport:
    """The results of one step; `step` counts from 1, and losses are means over micro-batches."""

    step: int
    loss: float
    """nats per token, without balancing losses"""
    losses: dict[str, float]
    """weighted balancing losses by name, averaged over layers"""
    learning_rate: float
    grad_norm: float
    """the norm of all gradients before clipping"""
    tokens: int
    """the number of tokens in this step"""
    seconds: float
    """the time of this step, without evaluation and checkpoints"""
    load: list[list[int]]
    """for each MoE layer and expert, the number of routed rows that chose the expert"""
    dropped: list[float]
    """for each MoE layer, the share of routed rows that were dropped because an expert was full"""
    alarms: tuple[Alarm, ...]
    """the alarms that this step raised"""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def max_over_mean(self) -> list[float]:
        """For each MoE layer, the load of this step's busiest expert divided by the mean load."""
        return busiest_over_mean(self.load)


def busiest_over_mean(load: list[list[int]]) -> list[float]:
    """For each layer, the largest load of an expert divided by the mean load."""
    return [float(max_over_mean(torch.tensor(load_E))) for load_E in load]


@dataclass(frozen=True, slots=True)
class StepMeans:
    """A step's means over micro-batches and ranks, and the norm of its gradients."""

    loss: float
    losses: dict[str, float]
    dropped: list[float]
    grad_norm: float


class Tally:
    """Adds up one step's micro-batches; the sums stay on the device until `means` is called."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: dict[tuple[str, str | int], Tensor] = {}

    def add(self, nats: Tensor, output: DecoderOutput) -> None:
        self._count += 1
        self._add(("nats", ""), nats.detach())
        for name, loss in output.losses.items():
            self._add(("losses", name), loss.detach())
        for row, layer in enumerate(output.moe):
            self._add(("dropped", row), dropped_share(layer.routing))

    def _add(self, key: tuple[str, str | int], value: Tensor) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def means(self, grad_norm: Tensor, ranks: Ranks = ONE_RANK) -> StepMeans:
        """Means over micro-batches and ranks; this synchronises the device.

        `grad_norm` is the norm of the gradients' averages over all ranks.
        """
        sums = ranks.sum(torch.stack(list(self._sums.values())))
        *totals, norm = torch.cat([sums, grad_norm.view(1)]).double().tolist()
        count = self._count * ranks.count
        mean = {key: total / count for key, total in zip(self._sums, totals, strict=True)}
        return StepMeans(
            loss=mean["nats", ""],
            losses={str(name): v for (kind, name), v in mean.items() if kind == "losses"},
            dropped=[v for (kind, _), v in mean.items() if kind == "dropped"],
            grad_norm=norm,
        )
