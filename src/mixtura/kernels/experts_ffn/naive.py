"""The FFNs of all experts, computed expert by expert; this defines the result of every backend.

N rows, n rows of one expert, D width, E experts, F expert width, H rows of w_in: 2F if the
activation is gated (F rows of W_gate, then F rows of W_up), else F. Biases are given for both
products of an FFN, or for neither.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.kernels.activation import activate
from mixtura.shapes import Activation


class Biases(NamedTuple):
    """The biases of the products with w_in and with w_out, for each expert."""

    in_EH: Tensor
    out_ED: Tensor


def experts_ffn_naive(
    x_ND: Tensor,
    count_E: Tensor,
    w_in_EHD: Tensor,
    w_out_EDF: Tensor,
    activation: Activation,
    biases: Biases | None = None,
) -> Tensor:
    """y_ND = w_out[e] act(w_in[e] x) for the rows of each expert e.

    The first count_E[0] rows are of expert 0, the next count_E[1] rows of expert 1, and so on. Rows
    after the last expert's rows give 0.
    """
    outputs: list[Tensor] = []
    start = 0
    for expert, count in enumerate(count_E.tolist()):
        h_nH = x_ND[start : start + count] @ w_in_EHD[expert].T
        if biases is not None:
            h_nH = h_nH + biases.in_EH[expert]
        y_nD = activate(h_nH, activation) @ w_out_EDF[expert].T
        outputs.append(y_nD if biases is None else y_nD + biases.out_ED[expert])
        start += count
    outputs.append(x_ND.new_zeros(x_ND.shape[0] - start, w_out_EDF.shape[1]))
    return torch.cat(outputs)
