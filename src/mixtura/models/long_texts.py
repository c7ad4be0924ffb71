"""LongRoPE in a state of many sequences: which factors rotated the keys of each slot.

LongRoPE rotates all keys of a text with its long factors if the text is longer than the original
context, else with its short factors. So a text that grows past the original context has to be read
again from its beginning.

R rows of a step, S slots, N new positions of each slot, L positions of a slot.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixtura.errors import ConfigError


class LongTexts:
    """The tokens in each slot, and the factors that rotated the slot's keys."""

    def __init__(
        self, original_context: int, slots: int, context: int, device: torch.device | None = None
    ) -> None:
        self._original, self._context = original_context, context
        self.token_SL = torch.zeros(slots, context, dtype=torch.int64, device=device)
        self._long_S = torch.zeros(slots, dtype=torch.bool, device=device)
        self._expected = [0] * slots
        # Slots with keys of both factors, because an interruption ended a second reading.
        self._mixed: set[int] = set()

    def to_read_whole(self, token_SN: Tensor, start: int) -> bool:
        """Whether a pass over all slots has to read all positions again, not `token_SN` alone.

        `token_SN` are the new tokens, from position `start` on. Call this before the pass.
        """
        end = start + token_SN.shape[1]
        self.token_SL[:, start:end] = token_SN
        long = end > self._original
        anew = start > 0 and (bool(self._mixed) or bool(self._long_S[0]) != long)
        self._long_S.fill_(long)
        self._mixed = set(range(len(self._expected))) if anew else set()
        return anew

    def end_pass(self) -> None:
        """Call this once every layer has the keys of the pass."""
        self._mixed.clear()

    def expect(self, slot: int, length: int) -> None:
        """Announce that the text in this slot will have at least `length` tokens.

        A text that will be long then uses the long factors from its beginning.
        """
        self._expected[slot] = length

    def check_one_kind(self, slot_R: Tensor, position_R: Tensor) -> None:
        """Raises ConfigError where rows of a slot begin within the original context and pass it.

        Row after row, decode would rotate the first rows with other factors than the last rows.
        """
        for slot, (start, end) in _spans(slot_R, position_R).items():
            expected_long = self._expected[slot] > self._original
            if not expected_long and start < self._original < end:
                raise ConfigError(
                    f"the rows to verify of slot {slot} pass LongRoPE's original context of "
                    f"{self._original} positions midway; verify up to there, and then the rest"
                )

    def to_read_again(
        self, token_R: Tensor, slot_R: Tensor, position_R: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The slots that have to be read again before these rows, each with its tokens_L so far.

        The caller reads a slot again before it takes the next slot from the iterator.
        """
        self.token_SL[slot_R, position_R] = token_R
        for slot, (start, end) in _spans(slot_R, position_R).items():
            long = max(end, self._expected[slot]) > self._original
            anew = slot in self._mixed or bool(self._long_S[slot]) != long
            self._long_S[slot] = long
            if start > 0 and anew:
                self._mixed.add(slot)
                yield slot, self.token_SL[slot, :start]
            self._mixed.discard(slot)

    def angle(self, slot_R: Tensor, position_R: Tensor) -> Tensor:
        """angle_R: for each row, the number of a row of `RopeTables`."""
        return position_R + self._long_S[slot_R] * self._context


def _spans(slot_R: Tensor, position_R: Tensor) -> dict[int, tuple[int, int]]:
    """For each slot the first position among the rows, and the position after the last."""
    spans: dict[int, tuple[int, int]] = {}
    for slot, position in zip(slot_R.tolist(), position_R.tolist(), strict=True):
        start, end = spans.get(slot, (position, position + 1))
        spans[slot] = (min(start, position), max(end, position + 1))
    return spans
