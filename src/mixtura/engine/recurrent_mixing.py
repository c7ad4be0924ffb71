"""A block's recurrent mixer, for rows of any mix of sequences; the modules are the model's own.

R rows, N rows that go on to the FFN, D width, K taps.
"""

from functools import cached_property
from typing import Protocol

from torch import Tensor

from mixtura.engine.steps import StepRows
from mixtura.kernels.gated_delta import Spans, delta_mixer_rows
from mixtura.kernels.mamba2 import mamba_mixer_rows
from mixtura.kernels.phase import Phase
from mixtura.kernels.short_conv import Taps, short_conv_rows
from mixtura.models.gated_delta import GatedDelta
from mixtura.models.mamba2 import Mamba2
from mixtura.models.recurrence import Recurrence
from mixtura.models.recurrent_state import RecurrentLayer
from mixtura.models.short_conv import ShortConv


class SlotRows:
    """The rows of one step by their slots, computed once for all recurrent layers of the step."""

    def __init__(self, rows: StepRows) -> None:
        self._slot_R = rows.slot_R
        self._taps: dict[int, Taps] = {}

    @cached_property
    def of_slot(self) -> dict[int, list[int]]:
        """The numbers of each slot's rows, in the order of their positions."""
        found: dict[int, list[int]] = {}
        for row, slot in enumerate(self._slot_R.tolist()):
            found.setdefault(slot, []).append(row)
        return found

    @cached_property
    def spans(self) -> Spans:
        """The rows of each sequence, for a mixer that reads them one after another."""
        return Spans.of(self.of_slot)

    def taps(self, kernel: int) -> Taps:
        """Where the inputs of a convolution over `kernel` tokens lie."""
        if kernel not in self._taps:
            self._taps[kernel] = Taps.of(self.of_slot, kernel - 1, self._slot_R.device)
        return self._taps[kernel]


class RecurrentMixing(Protocol):
    """The recurrent mixer of one layer, with the states that the layer keeps.

    A row's result and the state after it depend, bit for bit, on that row, the state before it and
    the phase alone; `verify` computes as `decode`. So rows are mixed one position after another,
    in the order of their positions, however many come in one step.
    """

    def __call__(
        self, x_RD: Tensor, slot_rows: SlotRows, phase: Phase, logit_row_N: Tensor | None
    ) -> Tensor:
        """What the mixer adds to the rows of these numbers, (N, D); states take in all rows."""
        ...


class ShortConvMixing:
    def __init__(self, mixer: ShortConv, kept: RecurrentLayer) -> None:
        self._mixer, (self._held_SWD,) = mixer, kept.states

    def __call__(
        self, x_RD: Tensor, slot_rows: SlotRows, phase: Phase, logit_row_N: Tensor | None
    ) -> Tensor:
        input_RD, gate_RD = self._mixer.project(x_RD)
        conv = self._mixer.conv
        taps = slot_rows.taps(conv.weight.shape[1])
        mixed_ND = short_conv_rows(
            input_RD, self._held_SWD, taps, conv.weight, conv.bias, logit_row_N
        )
        return self._mixer.out(
            (gate_RD if logit_row_N is None else gate_RD[logit_row_N]) * mixed_ND
        )


class GatedDeltaMixing:
    def __init__(self, mixer: GatedDelta, kept: RecurrentLayer) -> None:
        self._mixer, self._weights = mixer, mixer.weights()
        self._tail_SWC, self._state_SHKV = kept.states

    def __call__(
        self, x_RD: Tensor, slot_rows: SlotRows, phase: Phase, logit_row_N: Tensor | None
    ) -> Tensor:
        projected_RP, gates_RG = self._mixer.project(x_RD)
        mixed_RX = delta_mixer_rows(
            projected_RP,
            gates_RG,
            self._weights,
            self._tail_SWC,
            self._state_SHKV,
            slot_rows.spans,
        )
        mixed_NX = mixed_RX if logit_row_N is None else mixed_RX[logit_row_N]
        return self._mixer.out(mixed_NX.to(x_RD.dtype))


class Mamba2Mixing:
    def __init__(self, mixer: Mamba2, kept: RecurrentLayer) -> None:
        self._mixer, self._weights = mixer, mixer.weights()
        self._tail_SWC, self._state_SHNP = kept.states

    def __call__(
        self, x_RD: Tensor, slot_rows: SlotRows, phase: Phase, logit_row_N: Tensor | None
    ) -> Tensor:
        kept = (self._tail_SWC, self._state_SHNP)
        rows = self._mixer.project(x_RD)
        mixed_RX = mamba_mixer_rows(*rows, self._weights, *kept, slot_rows.spans)
        mixed_NX = mixed_RX if logit_row_N is None else mixed_RX[logit_row_N]
        return self._mixer.out(mixed_NX.to(x_RD.dtype))


def mixing_of(mixer: Recurrence, kept: RecurrentLayer) -> RecurrentMixing:
    match mixer:
        case ShortConv():
            return ShortConvMixing(mixer, kept)
        case GatedDelta():
            return GatedDeltaMixing(mixer, kept)
        case Mamba2():
            return Mamba2Mixing(mixer, kept)
        case _:
            raise AssertionError(f"no decoder has a {type(mixer).__name__}")
