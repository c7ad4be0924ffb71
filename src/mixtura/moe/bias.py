"""Bias balancing: an update of the choosing bias, in place of a balance loss. E experts.

The choosing bias is added to the experts' scores when experts are chosen. It never enters combine
weights.
"""

from torch import Tensor


def bias_step(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """The choosing bias after an optimizer step: bias_e + rate * sign(mean load - load_e).

    DeepSeek-V3 balances its load in this way (arXiv 2412.19437, section 2.1.2). The mean load is
    taken over the last dim.
    """
    load_E = load_E.double()
    return bias_E + rate * (load_E.mean(-1, keepdim=True) - load_E).sign().to(bias_E.dtype)
