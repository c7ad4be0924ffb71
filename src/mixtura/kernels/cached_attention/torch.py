"""Attention over cached keys and values by torch's own operations, on any device.

A row is one token of a sequence. A slot is the place of one sequence in the cache. R rows, n
consecutive rows of one slot, A query heads, G key-value heads, H = A/G query heads that share a
key, C key dim, V value dim, L positions of the slot, up to the last position that one of the n rows
attends to.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixtura.kernels.cached_attention.naive import LayerKV, read_positions


def cached_attention_torch(
    q_RAC: Tensor,
    cache: LayerKV,
    slot_R: Tensor,
    position_R: Tensor,
    scale: float,
    window: int | None = None,
    sinks_A: Tensor | None = None,
) -> Tensor:
    """out_RAV in fp32. Consecutive rows of one slot are computed together."""
    out_RAV = q_RAC.new_empty(*q_RAC.shape[:2], cache.values.shape[3], dtype=torch.float32)
    for slot, rows in _runs(slot_R.tolist()):
        position_n = position_R[rows]
        seen = slice(0, int(position_n.max()) + 1)
        k_GLC = read_positions(cache.keys, cache.key_scales, slot, seen)
        v_GLV = read_positions(cache.values, cache.value_scales, slot, seen)
        q_GHnC = q_RAC[rows].float().transpose(0, 1).unflatten(0, (len(k_GLC), -1))
        score_GHnL = (q_GHnC @ k_GLC.mT[:, None]) * scale
        position_L = torch.arange(seen.stop, device=q_RAC.device)
        hidden_nL = position_L > position_n[:, None]
        if window is not None:
            hidden_nL |= position_L <= position_n[:, None] - window
        # The cache may contain any numbers at positions after a row's own; the attention mask
        # excludes these positions.
        score_GHnL = score_GHnL.masked_fill(hidden_nL, -torch.inf)
        if sinks_A is not None:
            sink_GH11 = sinks_A.float().view(*q_GHnC.shape[:2], 1, 1)
            score_GHnL = torch.cat([score_GHnL, sink_GH11.expand(-1, -1, len(position_n), -1)], -1)
        probs_GHnL = score_GHnL.softmax(-1)[..., : seen.stop]
        out_RAV[rows] = (probs_GHnL @ v_GLV[:, None]).flatten(0, 1).transpose(0, 1)
    return out_RAV


def _runs(slots: list[int]) -> Iterator[tuple[int, slice]]:
    """(slot, rows) for each run of consecutive rows of one slot."""
    begin = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[begin]:
            yield slots[begin], slice(begin, row)
            begin = row
