"""Steps of a decoder through torch's modules, one after another.

The native program (program.py) computes the same steps in one call. Tests compare the two.

R rows, N logit rows, D width, K experts per token.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from mixtura.engine.layer_attention import LayerAttention, layer_attention, selected
from mixtura.engine.recurrent_mixing import RecurrentMixing, SlotRows, mixing_of
from mixtura.engine.rope_tables import RopeTables
from mixtura.engine.steps import Chosen, Routes, StepRows
from mixtura.errors import ConfigError
from mixtura.kernels.phase import Phase, in_phase
from mixtura.kernels.row_linear import rows_alone
from mixtura.models import Decoder, State
from mixtura.models.decoder import Block
from mixtura.models.recurrent_state import RecurrentLayer
from mixtura.models.rotary import Rotary
from mixtura.models.state import KVLayer
from mixtura.moe import MoE
from mixtura.moe.capacity import Dropless
from mixtura.moe.routing import Routing


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of the decoder; its mixer writes to what the layer keeps, and reads it."""

    number: int
    block: Block
    attention: LayerAttention | None
    """None for a layer with a recurrent mixer"""
    recurrent: RecurrentMixing | None
    base: float | None
    """the layer's own RoPE base; None for the model's"""

    @classmethod
    def of(cls, decoder: Decoder, number: int, kept: KVLayer | RecurrentLayer) -> Self:
        shape, block = decoder.config.attention, decoder.blocks[number]
        assert isinstance(block, Block), "a decoder has nothing else"
        attention, recurrent = None, None
        if isinstance(kept, RecurrentLayer):
            assert block.recurrence is not None, "a state's layers are the decoder's"
            recurrent = mixing_of(block.recurrence, kept)
        else:
            attention = layer_attention(block.attention, kept.kv, shape.window_of(number))
        return cls(number, block, attention, recurrent, shape.local_base_of(number))

    def __call__(
        self,
        x_RD: Tensor,
        rows: StepRows,
        slot_rows: SlotRows,
        rope: Rotary,
        phase: Phase,
        logit_row_N: Tensor | None,
        chosen: list[Chosen] | None,
    ) -> Tensor:
        """x_ND, the logit rows after this block; all rows where `logit_row_N` is None.

        An MoE layer appends its router's choices to `chosen`, if that is a list.
        """
        ffn = self.block.ffn

        def mix(normed_RD: Tensor) -> Tensor:
            if self.recurrent is not None:
                return self.recurrent(normed_RD, slot_rows, phase, logit_row_N)
            assert self.attention is not None, "a layer has a mixer"
            return self.attention(normed_RD, rows, rope, phase, logit_row_N)

        def feed(normed_ND: Tensor) -> Tensor:
            if not isinstance(ffn, MoE):
                return ffn(normed_ND)
            output = ffn(normed_ND, None, Dropless(), selected(rows.token_R, logit_row_N))
            if chosen is not None:
                chosen.append(chosen_of(self.number, output.routing))
            return output.hidden

        return self.block.run(x_RD, mix, feed, logit_row_N)


def chosen_of(layer: int, routing: Routing) -> Chosen:
    """The router's choices, a row for each token.

    Raises ConfigError for a router that gives tokens different numbers of experts.
    """
    if routing.top_k is None:
        raise ConfigError(
            f"the router of layer {layer} gives tokens different numbers of experts, which a step "
            "cannot give out; record the routing of whole passes instead"
        )
    of_token = (-1, routing.top_k)
    expert_RK, weight_RK = routing.expert_N.view(of_token), routing.weight_N.view(of_token)
    return Chosen(layer, routing.num_experts, expert_RK, weight_RK.float())


class ModuleSteps:
    """Implements `Steps`. The modules may be packed or not; the decoder must be in eval mode.

    Raises ConfigError for `Routes` with `limit_R` or `between`.
    """

    def __init__(self, decoder: Decoder, state: State, angles: RopeTables) -> None:
        self._decoder, self._angles = decoder, angles
        self._layers = [Layer.of(decoder, number, kept) for number, kept in enumerate(state.layers)]

    def __call__(
        self, rows: StepRows, phase: Phase, logit_row_N: Tensor, routes: Routes | None = None
    ) -> Tensor:
        if routes is not None and (routes.limit_R is not None or routes.between is not None):
            raise ConfigError(
                "only the native program limits experts and calls between layers; leave out "
                "limit_R and between"
            )
        chosen: list[Chosen] | None = None if routes is None else []
        with rows_alone(), in_phase(phase):
            x_RD = self._decoder.embed(rows.token_R)
            ropes = self._angles.at(rows.angle_R, self._decoder.rope_dtype(x_RD.dtype))
            slot_rows = SlotRows(rows)
            *all_but_last, last = self._layers
            for layer in all_but_last:
                x_RD = layer(x_RD, rows, slot_rows, ropes[layer.base], phase, None, chosen)
            # The last layer computes its FFN for the logit rows alone. With `routes` it computes
            # all rows, because their choices are returned.
            some_N = logit_row_N if routes is None else None
            x_ND = last(x_RD, rows, slot_rows, ropes[last.base], phase, some_N, chosen)
            if routes is not None:
                routes.chosen, x_ND = tuple(chosen or ()), x_ND[logit_row_N]
            return self._decoder.logits(x_ND).float()
