"""LongRoPE in a state of many sequences: whose keys were turned by which factors.

A text beyond the original context turns all its keys by other factors than a shorter one, so when
it comes to pass that length, what the cache holds of it has to be read again.

R rows, N new positions of each slot, L positions of a slot.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixtura.errors import ConfigError


class LongTexts:
    """The text in each slot: its tokens, and how its keys were turned."""

    def __init__(
        self, original_context: int, slots: int, context: int, device: torch.device | None = None
    ) -> None:
        self._original, self._context = original_context, context
        self.token_SL = torch.zeros(slots, context, dtype=torch.int64, device=device)
        self._long_S = torch.zeros(slots, dtype=torch.bool, device=device)
        self._expected = [0] * slots
        # Slots that hold keys of both kinds, since an interruption ended the reading.
        self._mixed: set[int] = set()

    def to_read_whole(self, token_SN: Tensor, start: int) -> bool:
        """Before a pass over all slots at once: whether it has to begin at the first position."""
        end = start + token_SN.shape[1]
        self.token_SL[:, start:end] = token_SN
        long = end > self._original
        anew = start > 0 and (bool(self._mixed) or bool(self._long_S[0]) != long)
        self._long_S.fill_(long)
        self._mixed = set(range(len(self._expected))) if anew else set()
        return anew

    def end_pass(self) -> None:
        """Every layer holds the keys of the pass."""
        self._mixed.clear()

    def expect(self, slot: int, length: int) -> None:
        """A text that will have `length` tokens at least is turned so from its beginning."""
        self._expected[slot] = length

    def check_one_kind(self, slot_R: Tensor, position_R: Tensor) -> None:
        """Raises ConfigError where rows of one slot come to pass the original context midway.

        Step by step, the first of them would be turned by other factors than the last.
        """
        for slot, (start, end) in _spans(slot_R, position_R).items():
            known_long = self._expected[slot] > self._original
            if not known_long and start < self._original < end:
                raise ConfigError(
                    f"the rows to verify of slot {slot} pass LongRoPE's original context of "
                    f"{self._original} positions midway; verify up to there, and then the rest"
                )

    def to_read_again(
        self, token_R: Tensor, slot_R: Tensor, position_R: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Before these rows: the slots whose keys must be turned anew, and their tokens_L so far.

        A slot counts as read once the next one is asked for.
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
        """angle_R: rows of `AngleTables`."""
        return position_R + self._long_S[slot_R] * self._context


def _spans(slot_R: Tensor, position_R: Tensor) -> dict[int, tuple[int, int]]:
    """For each slot its first position among the rows, and the one after its last."""
    spans: dict[int, tuple[int, int]] = {}
    for slot, position in zip(slot_R.tolist(), position_R.tolist(), strict=True):
        start, end = spans.get(slot, (position, position + 1))
        spans[slot] = (min(start, position), max(end, position + 1))
    return spans
