"""The FFN of every expert, expert by expert: the definition for every backend.

N rows, D width, E experts, F expert width, H rows of w_in: 2F (gate, then up) or F.
Biases are given for both products, or for neither.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.kernels.activation import activate
from mixtura.shapes import Activation


class Biases(NamedTuple):
    """The biases of the products with w_in and with w_out."""

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
    """y_ND = w_out[e] act(w_in[e] x) for each expert's rows in turn; rows after them give 0."""
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
