"""Adaptive mixtures of local experts: Jacobs, Jordan, Nowlan, Hinton, Neural Computation 3 (1991).

B cases, I inputs of a layer, E experts, O outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixtura.config import Config

ErrorKind = Literal["cooperative", "competitive", "mixture"]


class LocalExpertsConfig(Config):
    """E experts of the same shape, and a gate; all of them read the same input.

    Without `hidden` each expert is linear with a bias, the paper's "very simple expert"; `hidden`
    lists the widths of layers of sigmoid units. With `output: sigmoid` and `outputs: 1` an expert
    gives a probability, and its decision surface is where this probability is 0.5, as in the
    paper's experiment. With `num_experts: 1` and a hidden layer, the system is the paper's
    back-propagation network.
    """

    inputs: int = Field(ge=1)
    outputs: int = Field(ge=1)
    num_experts: int = Field(ge=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()
    output: Literal["linear", "sigmoid"] = "linear"
    # The paper's experiments use "mixture", which is equation 3 of the paper.
    loss: ErrorKind = "mixture"


@dataclass(frozen=True, slots=True)
class LocalExpertsOutput:
    """The outputs of the experts and of the gate for B cases."""

    outputs_BEO: Tensor
    log_probs_BE: Tensor

    @property
    def probs_BE(self) -> Tensor:
        """p_i, the gate's mixing proportions; they sum to 1 in each case."""
        return self.log_probs_BE.exp()

    @property
    def blended_BO(self) -> Tensor:
        """sum_i p_i o_i, the output of the whole system."""
        return (self.probs_BE[:, :, None] * self.outputs_BEO).sum(1)

    def posterior_BE(self, target_BO: Tensor) -> Tensor:
        """h_i, the probability that expert i produced the target: the bracket of equation 5."""
        return self.log_joint_BE(target_BO).softmax(-1)

    def log_joint_BE(self, target_BO: Tensor) -> Tensor:
        """log(p_i exp(-||d - o_i||^2 / 2)), computed without the exp, so it stays finite."""
        return self.log_probs_BE - 0.5 * self.squared_BE(target_BO)

    def squared_BE(self, target_BO: Tensor) -> Tensor:
        """||d - o_i||^2. Raises ValueError where the target's shape is not (B, O)."""
        self.check(target_BO)
        return (target_BO[:, None] - self.outputs_BEO).square().sum(-1)

    def check(self, target_BO: Tensor) -> None:
        """Raises ValueError where the target's shape is not (B, O).

        A target of shape (B,) would broadcast against the experts, and give a wrong number.
        """
        cases, _, outputs = self.outputs_BEO.shape
        if target_BO.shape != (cases, outputs):
            raise ValueError(
                f"the target has shape {tuple(target_BO.shape)}; it must be (cases, outputs) = "
                f"({cases}, {outputs}): reshape it"
            )


def cooperative_error(output: LocalExpertsOutput, target_BO: Tensor) -> Tensor:
    """error_B of equation 1, ||d - sum_i p_i o_i||^2: each expert fits the error of the others.

    dE/do_i = -2 p_i (d - sum_j p_j o_j). Raises ValueError where the target's shape is not (B, O).
    """
    output.check(target_BO)
    return (target_BO - output.blended_BO).square().sum(-1)


def competitive_error(output: LocalExpertsOutput, target_BO: Tensor) -> Tensor:
    """error_B of equation 2, sum_i p_i ||d - o_i||^2: each expert fits the whole target.

    dE/do_i = -2 p_i (d - o_i), which is equation 4. Raises ValueError where the target's shape is
    not (B, O).
    """
    return (output.probs_BE * output.squared_BE(target_BO)).sum(-1)


def mixture_error(output: LocalExpertsOutput, target_BO: Tensor) -> Tensor:
    """error_B of equation 3, -log sum_i p_i exp(-||d - o_i||^2 / 2).

    Up to a constant it is the negative log-likelihood of a mixture of Gaussians with means o_i and
    variance 1. dE/do_i = -h_i (d - o_i), which is equation 5, and h_i is the posterior. So for each
    case the expert that fits it best adapts fastest. Raises ValueError where the target's shape is
    not (B, O).
    """
    return -output.log_joint_BE(target_BO).logsumexp(-1)


ErrorFunction = Callable[[LocalExpertsOutput, Tensor], Tensor]
ERRORS: Mapping[ErrorKind, ErrorFunction] = {
    "cooperative": cooperative_error,
    "competitive": competitive_error,
    "mixture": mixture_error,
}


class StackedLinear(nn.Module):
    """E linear layers with biases, one for each expert."""

    def __init__(self, num_experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(num_experts, outputs))
        nn.init.normal_(self.weight, std=inputs**-0.5)

    def forward(self, x_BEI: Tensor) -> Tensor:
        """(B, E, I) -> (B, E, O)"""
        return torch.einsum("bei,eio->beo", x_BEI, self.weight) + self.bias


class LocalExperts(nn.Module):
    """The experts and their gate. `error` is the config's error function."""

    def __init__(self, config: LocalExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.error: ErrorFunction = ERRORS[config.loss]
        self.gate = nn.Linear(config.inputs, config.num_experts)
        # As in the paper, all experts begin with equal mixing proportions in every case.
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        widths = (config.inputs, *config.hidden, config.outputs)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [StackedLinear(config.num_experts, inputs, outputs), nn.Sigmoid()]
        self.experts = nn.Sequential(*(layers if config.output == "sigmoid" else layers[:-1]))

    def forward(self, x_BI: Tensor) -> LocalExpertsOutput:
        """Every expert computes every case: there is no choice, and no case is dropped."""
        x_BEI = x_BI[:, None].expand(-1, self.config.num_experts, -1)
        return LocalExpertsOutput(self.experts(x_BEI), self.gate(x_BI).log_softmax(-1))
