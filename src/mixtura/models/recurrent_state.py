"""The states of recurrent layers, and the way back to an earlier position of a sequence.

A recurrent layer overwrites its state, so a position behind the newest one is reached from a copy
at or before it, and by reading again the tokens between. R rows, L positions of a slot.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.models.recurrence import States
from mixtura.shapes.storage.cache import SNAPSHOTS

# Text that is generated leaves a snapshot every so many positions.
INTERVAL = 256


class RecurrentLayer:
    """The tensors of one layer, for each slot: now, and at SNAPSHOTS earlier positions."""

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], slots: int, device: torch.device | None = None
    ) -> None:
        self.states: States = tuple(torch.zeros(slots, *one, device=device) for one in shapes)
        # Memory is touched as snapshots are made.
        self.copies = tuple(torch.empty(slots, SNAPSHOTS, *one, device=device) for one in shapes)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.states, *self.copies))

    @property
    def device(self) -> torch.device:
        return self.states[0].device

    def snapshot(self, slot: int) -> States:
        return tuple(state[slot].clone() for state in self.states)

    def rewind(self, slot: int, kept: States | None) -> None:
        """Nothing without a copy: the next read finds its way from a snapshot of `Histories`."""
        if kept is not None:
            for state, copy in zip(self.states, kept, strict=True):
                state[slot] = copy

    def keep(self, slot: int, place: int) -> None:
        """Copy a slot's state to one of its SNAPSHOTS places."""
        for state, kept in zip(self.states, self.copies, strict=True):
            kept[slot, place] = state[slot]

    def restore(self, slot: int, place: int | None) -> None:
        """The state that was copied to `place`; None: as before the first token."""
        for state, kept in zip(self.states, self.copies, strict=True):
            state[slot] = 0 if place is None else kept[slot, place]


class Run(NamedTuple):
    """Tokens of one slot that were read in one arithmetic."""

    token_R: Tensor
    decoded: bool
    """whether by decode or verify; else by prefill"""


class Histories:
    """What each slot has read, and at which positions its recurrent layers were copied.

    Call `go_to` and `begin` before tokens are read, and `end` once every layer has read them.
    Between `begin` and `end` the states count as unknown, so that an interrupted reading is undone.
    """

    def __init__(self, layers: Sequence[RecurrentLayer], slots: int, capacity: int) -> None:
        self._layers = layers
        self._token_SL = torch.zeros(slots, capacity, dtype=torch.int64)
        # Prefill and decode round differently, so a text is read again as it was read first.
        self._decoded_SL = torch.zeros(slots, capacity, dtype=torch.bool)
        # Tokens noted, all of which can be read again; and those that the states have read.
        self._noted = [0] * slots
        self._held = [0] * slots
        self._whole = [True] * slots
        self._places: list[list[int | None]] = [[None] * SNAPSHOTS for _ in range(slots)]

    def held(self, slot: int) -> int | None:
        """How many tokens the slot's states have read; None after an interruption."""
        return self._held[slot] if self._whole[slot] else None

    def tokens(self, start: int, end: int) -> Tensor:
        """Of all slots."""
        return self._token_SL[:, start:end]

    def go_to(self, slot: int, position: int) -> int:
        """Bring the slot's states to `position`, or to the nearest copy before it.

        Gives the position they are at; tokens from there on have to be read again. Raises
        ConfigError for a position beyond what the slot holds.
        """
        if position > self._noted[slot]:
            raise ConfigError(
                f"position {position} of slot {slot} lies beyond the {self._noted[slot]} tokens "
                "that its recurrent layers have read; read the tokens between first"
            )
        self._noted[slot] = position
        places = self._places[slot]
        for place, length in enumerate(places):
            if length is not None and length > position:
                places[place] = None
        # At the beginning the states are always cleared, whatever is in their memory.
        if self.held(slot) == position > 0:
            return position
        kept = {length: place for place, length in enumerate(places) if length is not None}
        nearest = max(kept, default=0)
        self._whole[slot] = False
        for layer in self._layers:
            layer.restore(slot, kept.get(nearest))
        self._held[slot], self._whole[slot] = nearest, True
        return nearest

    def rewound(self, slot: int, length: int) -> None:
        """A caller's own copy, made after `length` tokens, was put back."""
        places = self._places[slot]
        self._places[slot] = [None if n is None or n > length else n for n in places]
        self._noted[slot] = self._held[slot] = length
        self._whole[slot] = True

    def run(self, slot: int, start: int, end: int) -> Run:
        """The first tokens of positions start..end - 1 that were read in one arithmetic."""
        decoded_R = self._decoded_SL[slot, start:end]
        decoded = bool(decoded_R[0])
        other_R = (decoded_R != decoded).nonzero()
        length = int(other_R[0]) if len(other_R) else end - start
        return Run(self._token_SL[slot, start : start + length], decoded)

    def begin(self, slot_R: Tensor, position_R: Tensor, token_R: Tensor, *, decoded: bool) -> None:
        """Tokens are about to be read, from where each slot's states are."""
        for slot in set(slot_R.flatten().tolist()):
            self._whole[slot] = False
        self._token_SL[slot_R, position_R] = token_R
        self._decoded_SL[slot_R, position_R] = decoded

    def end(self, slot: int, length: int) -> None:
        """Every layer has read `length` tokens of the slot."""
        self._noted[slot] = max(self._noted[slot], length)
        self._held[slot], self._whole[slot] = length, True

    def keep(self, slot: int) -> None:
        """Copy the slot's states, in place of an older copy where there are SNAPSHOTS.

        Copies then lie the denser the nearer they are to the newest token.
        """
        now, places = self._held[slot], self._places[slot]
        if now == 0 or now in places:
            return
        place = places.index(None) if None in places else _least_needed(places, now)
        places[place] = None
        for layer in self._layers:
            layer.keep(slot, place)
        places[place] = now


def _least_needed(places: Sequence[int | None], now: int) -> int:
    """The place whose copy leaves the smallest gap beside its distance from `now`."""
    lengths = sorted(length for length in places if length is not None)
    around = zip([0, *lengths], lengths, [*lengths[1:], now], strict=False)
    _, length = min(((after - before) / (now - own), own) for before, own, after in around)
    return places.index(length)
