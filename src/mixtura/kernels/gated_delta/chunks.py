"""The gated delta rule over chunks of a sequence at once, for training.

Within a chunk the tokens' writes are the solution of one triangular system (the WY form of Gated
DeltaNet, arXiv 2412.06464, section 3.3), so a chunk is a few matrix products, and only the state
passes from one chunk to the next.

B sequences, S tokens, H heads, K key dim, V value dim; N chunks of C tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def gated_delta_chunks(
    q_BSHK: Tensor, k_BSHK: Tensor, v_BSHV: Tensor, decay_log_BSH: Tensor, beta_BSH: Tensor
) -> Tensor:
    """out_BSHV, as `gated_delta_naive` gives it from an empty state.

    Chunks begin at every 64th token of the sequence. A token with a beta and a logarithm of the
    decay of 0 leaves the state as it is.
    """
    length = q_BSHK.shape[1]
    q, k, v = (_chunked(part) for part in (q_BSHK, k_BSHK, v_BSHV))
    beta = _chunked(beta_BSH[..., None])
    # The decay from the chunk's beginning to each token, as a logarithm.
    since = _chunked(decay_log_BSH[..., None]).cumsum(-2)
    between = _decay_between(since)
    earlier = (beta * k @ k.mT * between).tril(-1)
    written = torch.cat([beta * v, beta * since.exp() * k], -1)
    # From an empty state, and what the state at the chunk's beginning takes from it.
    own, read = torch.linalg.solve_triangular(
        earlier, written, upper=False, unitriangular=True
    ).split([v.shape[-1], k.shape[-1]], -1)
    seen = (q @ k.mT * between).tril()
    reading, total = since.exp() * q, since[..., -1:, :]
    kept = (total - since).exp() * k
    state_BHKV = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for number in range(q.shape[2]):
        new = own[:, :, number] - read[:, :, number] @ state_BHKV
        outputs.append(reading[:, :, number] @ state_BHKV + seen[:, :, number] @ new)
        state_BHKV = total[:, :, number].exp() * state_BHKV + kept[:, :, number].mT @ new
    return torch.cat(outputs, 2)[:, :, :length].transpose(1, 2)


def _chunked(x_BSHD: Tensor) -> Tensor:
    """(B, H, N, C, D), with zeros behind the last token."""
    x_BHSD = F.pad(x_BSHD.transpose(1, 2), (0, 0, 0, -x_BSHD.shape[1] % CHUNK))
    return x_BHSD.unflatten(2, (-1, CHUNK))


def _decay_between(since: Tensor) -> Tensor:
    """The decay from each token (columns) to each later one (rows); 0 to an earlier one."""
    difference = since - since.mT
    later = torch.ones_like(difference, dtype=torch.bool).triu(1)
    # Filled before the exponential: that of a later token may be infinite, its gradient nan.
    return difference.masked_fill(later, float("-inf")).exp()
