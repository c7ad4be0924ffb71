"""Mamba-2's recurrence over chunks of a sequence at once, for training.

Within a chunk a token reads every earlier one as in attention, with the decay between them in place
of a softmax (state-space duality, arXiv 2405.21060, section 6), and only the state passes from one
chunk to the next.

B sequences, S tokens, G groups of I heads each, H = GI, P channels of a head, N state dims; M
chunks of L tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtura.kernels.mamba2.naive import MambaParts

CHUNK = 64


def mamba2_chunks(parts: MambaParts) -> Tensor:
    """out_BSHP, as `mamba2_naive` gives it from an empty state.

    Chunks begin at every 64th token of the sequence. A token with a step and a logarithm of the
    decay of 0 leaves the state as it is.
    """
    batch, length, heads, dim = parts.x_SHP.shape
    groups = parts.b_SGN.shape[2]
    of_head = (groups, heads // groups)
    written = _chunked((parts.step_SH[..., None] * parts.x_SHP).unflatten(2, of_head))
    # The decay from the chunk's beginning to each token, as a logarithm.
    since = _chunked(parts.decay_log_SH[..., None].unflatten(2, of_head)).cumsum(-2)
    b, c = (_chunked(part[:, :, :, None]) for part in (parts.b_SGN, parts.c_SGN))
    own = (c @ b.mT * _decay_between(since)) @ written
    total = since[..., -1:, :]
    reading, kept = since.exp() * c, (total - since).exp() * b
    state_BGINP = written.new_zeros(batch, *of_head, b.shape[-1], dim)
    outputs = []
    for number in range(written.shape[3]):
        outputs.append(own[:, :, :, number] + reading[:, :, :, number] @ state_BGINP)
        added = kept[:, :, :, number].mT @ written[:, :, :, number]
        state_BGINP = total[:, :, :, number].exp() * state_BGINP + added
    out_BGISP = torch.cat(outputs, 3)[:, :, :, :length]
    return out_BGISP.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _chunked(x_BSGID: Tensor) -> Tensor:
    """(B, G, I, M, L, D), with zeros behind the last token."""
    x_BGISD = x_BSGID.permute(0, 2, 3, 1, 4)
    return F.pad(x_BGISD, (0, 0, 0, -x_BSGID.shape[1] % CHUNK)).unflatten(3, (-1, CHUNK))


def _decay_between(since: Tensor) -> Tensor:
    """The decay from each token (columns) to each later one (rows); 0 to an earlier one."""
    difference = since - since.mT
    later = torch.ones_like(difference, dtype=torch.bool).triu(1)
    # Filled before the exponential: that of a later token may be infinite, its gradient nan.
    return difference.masked_fill(later, float("-inf")).exp()
