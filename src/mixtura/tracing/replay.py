"""Replays a trace: a model's layers route tokens as the trace records.

B sequences, S tokens of each sequence in one pass, T = B*S tokens, D model width, E experts, K the
most choices of a token, N routed rows, R recorded tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixtura.errors import ConfigError, DataError
from mixtura.moe.capacity import Candidates, Capacity
from mixtura.moe.layer import MoE
from mixtura.moe.routers.batchwise import Batchwise
from mixtura.moe.routers.expert_threshold import ExpertThreshold
from mixtura.moe.routers.router import Router
from mixtura.moe.routers.sparse_mixer import SparseMixer
from mixtura.moe.routers.token_choice import LinearRouter
from mixtura.moe.routers.top_p import TopP
from mixtura.moe.routing import Routing, token_rows
from mixtura.moe.tokens import Tokens
from mixtura.trace import ABSENT, LayerRows, TraceBatch, TraceReader

ReplayedWeights = Literal["recorded", "recomputed"]

# Routers whose `weigh` accepts rows without an expert. Other routers would give rows without an
# expert a share of the token's weight.
_MAY_CHOOSE_FEWER = (TopP, ExpertThreshold, Batchwise)


@contextmanager
def replay(
    model: nn.Module,
    layers: Mapping[int, MoE],
    trace: TraceReader,
    sequences: Sequence[int],
    weights: ReplayedWeights = "recorded",
) -> Iterator[None]:
    """Within the block, each pass of `model` routes as the trace records for `sequences`.

    Row b of a batch is sequence `sequences[b]` of the trace, from its first token on. Later passes
    continue the sequences; padding is skipped. `layers` are all MoE layers of the model, by their
    numbers in the trace.

    With weights="recorded", combine weights come from the trace. With "recomputed", each layer's
    router computes them for the recorded experts, with gradients. Probabilities and logits are
    always the router's own, so balance losses are computed from them and the recorded choices.

    If each token has K rows, outputs equal those of the recorded model bit for bit. Under expert
    choice, a token's rows may be summed in another order than in the recorded model.

    Raises DataError if the trace has other layers, experts or tokens than the model, or if a pass
    continues beyond the end of a recorded sequence. Raises ConfigError if weights are recomputed
    and a router cannot weigh experts that it did not choose.
    """
    _check_layers(layers, trace, weights)
    recorded = _Recorded(trace, sequences)
    with ExitStack() as stack:
        hook = model.register_forward_pre_hook(lambda *_: recorded.next_pass())
        stack.callback(hook.remove)
        for number, layer in layers.items():
            routed = _Replayed(number, recorded, weights)
            stack.callback(layer.router.register_forward_hook(routed).remove)
        yield


def _check_layers(layers: Mapping[int, MoE], trace: TraceReader, weights: ReplayedWeights) -> None:
    there = {layer.layer: layer.num_experts for layer in trace.meta.layers}
    if there.keys() != layers.keys():
        raise DataError(
            f"{trace.path}: is of layers {sorted(there)}, and the model's MoE layers are "
            f"{sorted(layers)}; replay a trace of this model that has all its layers"
        )
    for number, layer in layers.items():
        if layer.config.num_experts != there[number]:
            raise DataError(
                f"{trace.path}: layer {number} has {there[number]} experts in the trace and "
                f"{layer.config.num_experts} in the model"
            )
        if weights == "recomputed" and not _weighs(layer.router):
            raise ConfigError(
                f"weights=recomputed: layer {number}'s router, kind={layer.config.router.name}, "
                "cannot weigh experts that it is given; use weights=recorded"
            )


def _weighs(router: Router) -> bool:
    """Whether the router can weigh experts that it did not choose.

    SparseMixer cannot: its weights are the probabilities of its own random samples.
    """
    return isinstance(router, LinearRouter) and not isinstance(router, SparseMixer)


class _Recorded:
    """Sequences of a trace, and the number of tokens that passes have read of each sequence."""

    def __init__(self, trace: TraceReader, sequences: Sequence[int]) -> None:
        self.trace, self.numbers = trace, list(sequences)
        parts = trace.sequences(self.numbers)
        self.batch = TraceBatch.joined(parts)
        self.length_B = np.array([len(part) for part in parts])
        self.first_B = np.concatenate([[0], np.cumsum(self.length_B)])[:-1]
        self._done_B = np.zeros_like(self.length_B)
        self._now_B = np.zeros_like(self.length_B)

    def next_pass(self) -> None:
        # The counts are updated when the next pass begins: checkpointing may run the layers of this
        # pass again, and they must then find the same tokens.
        self._done_B, self._now_B = self._done_B + self._now_B, np.zeros_like(self._now_B)

    def rows(self, valid_BS: NDArray[np.bool_], id_T: Tensor | None) -> NDArray[np.int64]:
        """row_T: each token's index among the recorded tokens; R for padding."""
        if len(valid_BS) != len(self.numbers):
            raise DataError(
                f"{self.trace.path}: {len(self.numbers)} sequences are replayed, and the model "
                f"was given {len(valid_BS)}"
            )
        self._now_B = valid_BS.sum(1)
        beyond_B = self._done_B + self._now_B > self.length_B
        if beyond_B.any():
            place = int(beyond_B.argmax())
            raise DataError(
                f"{self.trace.path}: sequence {self.numbers[place]} has {self.length_B[place]} "
                f"tokens, and the model was given {self._done_B[place] + self._now_B[place]}"
            )
        place_BS = self._done_B[:, None] + valid_BS.cumsum(1) - 1
        row_BS = np.where(valid_BS, self.first_B[:, None] + place_BS, len(self.batch))
        row_T = row_BS.reshape(-1)
        if id_T is not None:
            self._check_tokens(row_T, id_T)
        return row_T

    def _check_tokens(self, row_T: NDArray[np.int64], id_T: Tensor) -> None:
        kept_T = np.flatnonzero(row_T < len(self.batch))
        given_T, there_T = id_T.cpu().numpy()[kept_T], self.batch.id_T[row_T[kept_T]]
        other_T = given_T != there_T
        if other_T.any():
            place = int(other_T.argmax())
            row = row_T[kept_T[place]]
            raise DataError(
                f"{self.trace.path}: position {self.batch.position_T[row]} of sequence "
                f"{self.batch.sequence_T[row]} is token {there_T[place]}, and the model was given "
                f"token {given_T[place]}; replay the text that was recorded"
            )


@dataclass(frozen=True, slots=True)
class _Table:
    """The routing of R tokens in one layer, with one more row for padding.

    In `chosen_RK` and `expert_RK`, the number E means no expert.
    """

    chosen_RK: Tensor
    expert_RK: Tensor
    weight_RK: Tensor

    @classmethod
    def of(cls, rows: LayerRows, num_experts: int, width: int) -> "_Table":
        computed_N = np.where(rows.computed_N == ABSENT, num_experts, rows.computed_N)

        def table(of_N: NDArray, fill: int, dtype: torch.dtype) -> Tensor:
            padded_RK = np.pad(
                rows.by_choice(of_N, width, fill), ((0, 1), (0, 0)), constant_values=fill
            )
            return torch.from_numpy(padded_RK).to(dtype)

        return cls(
            table(rows.chosen_N, num_experts, torch.int64),
            table(computed_N, num_experts, torch.int64),
            table(rows.weight_N, 0, torch.float32),
        )

    def at(self, row_T: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(chosen_TK, expert_TK, weight_TK) of the tokens with the indices `row_T`."""
        weight_TK = self.weight_RK[row_T].to(like)
        return (
            self.chosen_RK[row_T].to(like.device),
            self.expert_RK[row_T].to(like.device),
            weight_TK,
        )


class _Replayed:
    """A router's forward hook, which replaces the rows of the router's Routing by recorded rows."""

    def __init__(self, number: int, recorded: _Recorded, weights: ReplayedWeights) -> None:
        self.number, self.recorded, self.weights = number, recorded, weights
        self.rows = recorded.batch.layers[number]
        self._tables: dict[tuple[int, int], _Table] = {}

    def __call__(
        self, router: Router, inputs: tuple[Tokens, Capacity | None], routing: Routing
    ) -> Routing:
        # MoE.forward calls its router with these two positional arguments.
        tokens, capacity = inputs
        x_TD, sequences = tokens.x_TD, tokens.num_sequences
        if tokens.valid_T is None:
            valid_BS = np.ones((sequences, len(x_TD) // sequences), bool)
        else:
            valid_BS = tokens.valid_T.cpu().numpy().reshape(sequences, -1)
        row_T = torch.from_numpy(self.recorded.rows(valid_BS, tokens.id_T))
        width = self._width(routing)
        table = self._table(routing.num_experts, width)
        chosen_TK, expert_TK, weight_TK = table.at(row_T, routing.weight_N)
        if self.weights == "recomputed":
            assert isinstance(router, LinearRouter), "checked before the first pass"
            weight_TK = self._weigh(router, x_TD, chosen_TK, expert_TK, routing.top_k)
        terms = {name: term for name, term in routing.terms.items() if name != "gate_N"}
        token_N, choice_N = token_rows(len(x_TD), width, x_TD.device)
        replayed = replace(
            routing,
            token_N=token_N,
            choice_N=choice_N,
            chosen_N=chosen_TK.reshape(-1),
            expert_N=expert_TK.reshape(-1),
            weight_N=weight_TK.reshape(-1),
            wave_N=None,
            terms=terms,
        )
        if routing.top_k is None:
            return _by_expert(replayed)
        if routing.wave_N is None:
            return replayed
        return _in_waves(replayed, router.capacity if capacity is None else capacity)

    def _width(self, routing: Routing) -> int:
        """K: the router's top_k; if it has none, the most experts of a recorded token."""
        most = int(self.rows.count_T.max(initial=0))
        if routing.top_k is None:
            return most
        if most > routing.top_k:
            raise DataError(
                f"{self.recorded.trace.path}: layer {self.number} has {most} experts a token in "
                f"the trace, and at most {routing.top_k} in the model"
            )
        return routing.top_k

    def _table(self, num_experts: int, width: int) -> _Table:
        key = (num_experts, width)
        if key not in self._tables:
            self._tables[key] = _Table.of(self.rows, num_experts, width)
        return self._tables[key]

    def _weigh(
        self,
        router: LinearRouter,
        x_TD: Tensor,
        chosen_TK: Tensor,
        expert_TK: Tensor,
        top_k: int | None,
    ) -> Tensor:
        """weight_TK of the experts that compute the rows; 0 for rows that no expert computes.

        A dropped row takes part in the weighing with its chosen expert.
        """
        num_experts = router.num_experts
        unweighted_TK = expert_TK == num_experts
        weighed_TK = torch.where(unweighted_TK, chosen_TK, expert_TK)
        fewer = isinstance(router, _MAY_CHOOSE_FEWER)
        if not fewer:
            none_TK = weighed_TK == num_experts
            # Only padding may have no experts at all; its weights are set to 0 below.
            if top_k is None or (none_TK.any(1) & ~none_TK.all(1)).any():
                raise ConfigError(
                    f"weights=recomputed: layer {self.number} has tokens of fewer experts than the "
                    "router weighs together; use weights=recorded"
                )
            weighed_TK = weighed_TK.masked_fill(none_TK, 0)
        weight_TK = router.weigh(router.scores(x_TD, None), weighed_TK)
        return weight_TK.masked_fill(unweighted_TK, 0.0)


def _by_expert(routing: Routing) -> Routing:
    """Sort the rows by expert, as routers with expert choice do, and leave out unused rows."""
    row_N = (routing.chosen_N < routing.num_experts).nonzero().squeeze(1)
    row_N = row_N[routing.expert_N[row_N].argsort(stable=True)]
    return replace(
        routing,
        token_N=routing.token_N[row_N],
        choice_N=routing.choice_N[row_N],
        chosen_N=routing.chosen_N[row_N],
        expert_N=routing.expert_N[row_N],
        weight_N=routing.weight_N[row_N],
        top_k=None,
    )


def _in_waves(routing: Routing, capacity: Capacity) -> Routing:
    """Give each row its wave: the pass over the experts in which the row is computed.

    The waves of the recorded model follow from its choices and the capacity.
    """
    assert routing.top_k is not None, "waves are for token choice"
    expert_TK = routing.expert_N.view(-1, routing.top_k)
    candidates = Candidates(expert_TK, routing.num_experts, routing.num_sequences, routing.valid_T)
    wave_TK = capacity.admit(candidates).wave_TK
    return replace(routing, wave_N=None if wave_TK is None else wave_TK.reshape(-1))
