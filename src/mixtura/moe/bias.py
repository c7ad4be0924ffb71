"""Balancing without a loss: a bias that affects the choice and not the weights. E experts."""

from torch import Tensor


def bias_step(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """The bias after one optimizer step: b_e + rate * sign(mean load - load_e).

    Bias balancing without a loss (DeepSeek-V3, arXiv 2412.19437, section 2.1.2); the bias affects
    only the choice of experts. The mean is taken over the last dim.
    """
    load_E = load_E.double()
    return bias_E + rate * (load_E.mean(-1, keepdim=True) - load_E).sign().to(bias_E.dtype)
