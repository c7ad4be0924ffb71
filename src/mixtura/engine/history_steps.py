"""Steps of a decoder with recurrent layers, which may begin at any position that a slot holds.

Keys and values of later positions are only forgotten; a recurrent layer's state has to be brought
back, and what lies between is read again, in the arithmetic in which it was read first. R rows.
"""

import torch
from torch import Tensor

from mixtura.engine.steps import Routes, StepRows, Steps
from mixtura.errors import ConfigError
from mixtura.kernels.phase import Phase
from mixtura.models.recurrent_state import INTERVAL, Histories

# StepRows of one step that reads a text again.
_MOST_ROWS = 512


class HistorySteps:
    """See `Steps`: each step first brings the states of its slots to where its rows begin."""

    def __init__(self, steps: Steps, histories: Histories) -> None:
        self._steps, self._histories = steps, histories

    def __call__(
        self, rows: StepRows, phase: Phase, logit_row_N: Tensor, routes: Routes | None = None
    ) -> Tensor:
        spans = spans_of(rows)
        missing: dict[int, tuple[int, int]] = {}
        for slot, (start, _) in spans.items():
            held = self._histories.go_to(slot, start)
            if held < start:
                missing[slot] = (held, start)
        while missing:
            missing = self._read_again(missing, rows.token_R.device)
        for slot, (start, _) in spans.items():
            # A draft may be accepted in part, so the place before it is kept.
            if phase == "verify" or (phase == "decode" and start % INTERVAL == 0):
                self._histories.keep(slot)
        return self._take(rows, spans, phase, logit_row_N, routes)

    def _take(
        self,
        rows: StepRows,
        spans: dict[int, tuple[int, int]],
        phase: Phase,
        logit_row_N: Tensor,
        routes: Routes | None = None,
    ) -> Tensor:
        of_slots = (rows.slot_R.cpu(), rows.position_R.cpu(), rows.token_R.cpu())
        self._histories.begin(*of_slots, decoded=phase != "prefill")
        logits_NV = self._steps(rows, phase, logit_row_N, routes)
        for slot, (_, end) in spans.items():
            self._histories.end(slot, end)
            if phase == "prefill":
                self._histories.keep(slot)
        return logits_NV

    def _read_again(
        self, missing: dict[int, tuple[int, int]], device: torch.device
    ) -> dict[int, tuple[int, int]]:
        """One step of what is missing; gives what is missing after it."""
        runs = {slot: self._histories.run(slot, *span) for slot, span in missing.items()}
        # All rows of a step have one arithmetic: that of the first slot's next tokens.
        decoded = next(iter(runs.values())).decoded
        room, spans = _MOST_ROWS, {}
        tokens_R: list[Tensor] = []
        for slot, run in runs.items():
            length = min(len(run.token_R), room)
            if run.decoded == decoded and length:
                start, _ = missing[slot]
                spans[slot] = (start, start + length)
                tokens_R.append(run.token_R[:length])
                room -= length
        slot_R = [slot for slot, (start, end) in spans.items() for _ in range(start, end)]
        position_R = torch.cat([torch.arange(*span) for span in spans.values()]).to(device)
        token_R = torch.cat(tokens_R).to(device)
        rows = StepRows(token_R, torch.tensor(slot_R, device=device), position_R, position_R)
        self._take(rows, spans, "verify" if decoded else "prefill", position_R[:0])
        left = {
            slot: (spans[slot][1] if slot in spans else start, end)
            for slot, (start, end) in missing.items()
        }
        return {slot: (start, end) for slot, (start, end) in left.items() if start < end}


def spans_of(rows: StepRows) -> dict[int, tuple[int, int]]:
    """For each slot its first position among the rows, and the one after its last.

    Raises ConfigError where a slot's rows do not stand one behind the other.
    """
    spans: dict[int, tuple[int, int]] = {}
    for slot, position in zip(rows.slot_R.tolist(), rows.position_R.tolist(), strict=True):
        start, end = spans.get(slot, (position, position))
        if position != end:
            raise ConfigError(
                f"slot {slot} has a row at position {position} behind one at {end - 1}; a model "
                "with recurrent layers reads a slot's positions one after another"
            )
        spans[slot] = (start, position + 1)
    return spans
