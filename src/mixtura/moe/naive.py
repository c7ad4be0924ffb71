"""A whole Mixture-of-Experts layer in forty lines. Read this file first.

The layer is that of Mixtral (arXiv 2401.04088), with the balance loss of Switch (arXiv 2101.03961,
eq. 4). The code computes one token and one expert at a time. `MoE` computes the same numbers in
large matrix products, and adds other routers, capacity, shared experts and more losses.

T tokens, D model width, E experts, K experts per token, F expert width, H = 2F rows of an expert's
w_in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NaiveMoE(nn.Module):
    """An MoE layer: a linear gate chooses K of E experts for each token, and weighs them."""

    def __init__(self, width: int, num_experts: int, top_k: int, expert_width: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate_ED = nn.Parameter(torch.randn(num_experts, width) / width**0.5)
        # Each expert's matrix has the F rows of W_gate, then the F rows of W_up.
        self.w_in_EHD = nn.Parameter(torch.randn(num_experts, 2 * expert_width, width) / width**0.5)
        self.w_out_EDF = nn.Parameter(
            torch.randn(num_experts, width, expert_width) / expert_width**0.5
        )

    def expert(self, number: int, x_D: Tensor) -> Tensor:
        """One expert's output for one token: W_out (silu(W_gate x) * (W_up x))."""
        gate_F, up_F = (self.w_in_EHD[number] @ x_D).chunk(2)
        return self.w_out_EDF[number] @ (F.silu(gate_F) * up_F)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output for each token, and the balance loss of these tokens."""
        num_experts = self.gate_ED.shape[0]
        probs_TE = (x_TD @ self.gate_ED.T).softmax(-1)
        best_TK = probs_TE.topk(self.top_k)
        # Dividing by the sum makes a token's K weights sum to 1.
        weight_TK = best_TK.values / best_TK.values.sum(-1, keepdim=True)
        out_TD = torch.zeros_like(x_TD)
        for token, x_D in enumerate(x_TD):
            for weight, chosen in zip(weight_TK[token], best_TK.indices[token], strict=True):
                out_TD[token] += weight * self.expert(int(chosen), x_D)
        # share_E is f_e of eq. 4: the number of tokens that chose expert e, divided by T*K. P_e is
        # the mean probability of expert e over the tokens.
        share_E = (
            best_TK.indices.flatten().bincount(minlength=num_experts) / best_TK.indices.numel()
        )
        return out_TD, num_experts * (share_E * probs_TE.mean(0)).sum()
