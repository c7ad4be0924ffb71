"""The slow twin: one sequence, one token after the other.

S tokens, D channels, K taps, W = K - 1 tokens before.
"""

import torch
from torch import Tensor


def short_conv_naive(
    x_SD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, before_WD: Tensor
) -> tuple[Tensor, Tensor]:
    """(out_SD, after_WD): out_s = sum over k of weight_k x_(s - W + k), and the last W inputs.

    The oldest token is added first, and the bias last. `before_WD` holds the inputs before the
    first: zeros at the beginning of a sequence.
    """
    window_WD, outputs = before_WD, []
    for x_D in x_SD:
        window_KD = torch.cat([window_WD, x_D[None]])
        out_D = torch.zeros_like(x_D)
        for tap, old_D in enumerate(window_KD):
            out_D = out_D + old_D * weight_DK[:, tap]
        outputs.append(out_D if bias_D is None else out_D + bias_D)
        window_WD = window_KD[1:]
    return torch.stack(outputs), window_WD
