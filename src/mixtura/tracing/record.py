"""Writes the routing of forward passes to a trace.

B sequences, S tokens of each sequence in one pass, T = B*S tokens, T1 is T + 1, E experts. A layer
has N routed rows: one row for each expert that a token chose.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixtura.errors import DataError
from mixtura.moe.routing import Routing
from mixtura.trace import ABSENT, LayerRows, TraceBatch, TraceWriter


class Recorder:
    """Writes forward passes to a trace.

    Call `begin` for new sequences. In each pass, call `take` for every layer, then `end_pass`. The
    next passes continue the same sequences until the next `begin`, as in generation with a cache.
    Padding is left out. The routing may come from Mixtura's layers (see
    `mixtura.tracing.model_trace`) or from hooks on another library's model.
    """

    def __init__(self, writer: TraceWriter) -> None:
        self.writer = writer
        self.domain = ABSENT
        """the writer's number of the domain of the next tokens; -1 for no domain"""
        # NumPy arrays keep neither an autograd graph nor device memory alive.
        self._taken: dict[int, LayerRows] = {}
        self._traced_layers = {layer.layer: layer for layer in writer.meta.layers}
        self._sequence_B = np.arange(0)
        self._position_B = np.arange(0)
        self._begun = 0

    def begin(self, sequences: int, position: int = 0) -> None:
        """Begin `sequences` new sequences, whose first tokens have the position `position`."""
        self._sequence_B = np.arange(self._begun, self._begun + sequences)
        self._position_B = np.full(sequences, position)
        self._begun += sequences

    def take(self, layer: int, routing: Routing) -> None:
        """Record the routing of one layer in this pass; layers that are not traced are ignored.

        Raises DataError if the number of experts differs from the trace's, if the trace needs
        probabilities and `routing` has none, or if this pass has a routing of the layer already.
        """
        if layer not in self._traced_layers:
            return
        self._check(layer, routing.num_experts)
        try:
            self._taken[layer] = layer_rows(routing, self.writer.meta.probabilities)
        except DataError as error:
            raise DataError(f"layer {layer}: {error}") from error

    def take_rows(self, layer: int, num_experts: int, rows: LayerRows) -> None:
        """Record rows of one layer; they must have probabilities if the trace needs them."""
        if layer in self._traced_layers:
            self._check(layer, num_experts)
            self._taken[layer] = rows

    def _check(self, layer: int, num_experts: int) -> None:
        traced = self._traced_layers[layer]
        if layer in self._taken:
            raise DataError(
                f"layer {layer} was recorded twice in one pass; end the pass before the next one, "
                "and take no routing while checkpointing computes it again"
            )
        if num_experts != traced.num_experts:
            raise DataError(
                f"layer {layer} has {num_experts} experts, and the trace is of {traced.num_experts}"
            )

    def end_pass(self, tokens_BS: Tensor, valid_BS: Tensor | None = None) -> None:
        """Write the tokens of the pass; `valid_BS` is False for padding.

        Raises DataError if a traced layer has no routing in this pass, or if the number of
        sequences or of tokens does not fit.
        """
        taken, self._taken = self._taken, {}
        missing = sorted(self._traced_layers.keys() - taken.keys())
        if missing:
            raise DataError(f"layer {missing[0]} gave no routing in this pass")
        if len(tokens_BS) != len(self._sequence_B):
            raise DataError(
                f"a pass of {len(tokens_BS)} sequences was recorded, and {len(self._sequence_B)} "
                "were begun; call begin() with their number first"
            )
        valid_BS = torch.ones_like(tokens_BS, dtype=torch.bool) if valid_BS is None else valid_BS
        kept_BS = _array(valid_BS.bool())
        position_BS = self._position_B[:, None] + kept_BS.cumsum(1) - 1
        sequence_BS = np.broadcast_to(self._sequence_B[:, None], kept_BS.shape)
        kept_T = np.flatnonzero(kept_BS)
        for layer, rows in taken.items():
            if len(rows) != kept_BS.size:
                raise DataError(
                    f"layer {layer} routed {len(rows)} tokens in a pass of {kept_BS.size}"
                )
        self.writer.append(
            TraceBatch(
                id_T=_array(tokens_BS)[kept_BS],
                position_T=position_BS[kept_BS].astype(np.int32),
                sequence_T=sequence_BS[kept_BS].astype(np.int32),
                domain_T=np.full(len(kept_T), self.domain, np.int32),
                layers={layer: rows.take(kept_T) for layer, rows in taken.items()},
            )
        )
        self._position_B = self._position_B + kept_BS.sum(1)


def layer_rows(routing: Routing, probabilities: str | None = None) -> LayerRows:
    """The rows of a Routing that chose an expert, sorted by token, then by choice.

    `probabilities` is the dtype of the probabilities in the result; None leaves them out. Raises
    DataError if probabilities are needed and the Routing has none.
    """
    chosen_N, expert_N = _array(routing.chosen_N), _array(routing.expert_N)
    token_N, choice_N = _array(routing.token_N), _array(routing.choice_N)
    row_N = np.flatnonzero(chosen_N < routing.num_experts)
    row_N = row_N[np.lexsort((choice_N[row_N], token_N[row_N]))]
    computed_N = expert_N[row_N]
    count_T = np.bincount(token_N[row_N], minlength=routing.num_tokens)
    probs_TE: NDArray[np.floating] | None = None
    if probabilities is not None:
        if routing.probs_TE is None:
            raise DataError(
                "probabilities are to be recorded, and this router gives none; leave them out"
            )
        probs_TE = _array(routing.probs_TE.float()).astype(probabilities)
    return LayerRows(
        start_T1=np.concatenate([[0], np.cumsum(count_T)]),
        chosen_N=chosen_N[row_N],
        weight_N=_array(routing.weight_N.float())[row_N],
        computed_N=np.where(computed_N == routing.num_experts, ABSENT, computed_N),
        probs_TE=probs_TE,
    )


def _array(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()
