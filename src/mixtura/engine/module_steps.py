"""Steps of a decoder through torch's modules, one after another: the twin of the fused program.

R rows, N rows asked for, D width, K experts per token, V vocabulary.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from mixtura.engine.angles import AngleTables
from mixtura.engine.attending import Attending, attending_of, taken
from mixtura.engine.steps import Chosen, Routes, Rows
from mixtura.errors import ConfigError
from mixtura.kernels.cached_attention import LayerKV
from mixtura.kernels.phase import Phase, in_phase
from mixtura.kernels.row_linear import rows_alone
from mixtura.models import Decoder, State
from mixtura.models.decoder import Block
from mixtura.models.rotary import Rotary
from mixtura.moe import MoE
from mixtura.moe.capacity import Dropless
from mixtura.moe.routing import Routing


@dataclass(frozen=True, slots=True)
class Layer:
    """One block; its attention holds what it keeps."""

    number: int
    block: Block
    attending: Attending
    base: float | None
    """the rotary base that it has for itself"""

    @classmethod
    def of(cls, decoder: Decoder, number: int, kept: LayerKV) -> Self:
        attention, block = decoder.config.attention, decoder.blocks[number]
        assert isinstance(block, Block), "a decoder has nothing else"
        attending = attending_of(block.attention, kept, attention.window_of(number))
        return cls(number, block, attending, attention.local_base_of(number))

    def __call__(
        self,
        x_RD: Tensor,
        rows: Rows,
        rope: Rotary,
        phase: Phase,
        asked_N: Tensor | None,
        chosen: list[Chosen] | None,
    ) -> Tensor:
        ffn = self.block.ffn

        def mix(normed_RD: Tensor) -> Tensor:
            return self.attending(normed_RD, rows, rope, phase, asked_N)

        def feed(normed_ND: Tensor) -> Tensor:
            if not isinstance(ffn, MoE):
                return ffn(normed_ND)
            output = ffn(normed_ND, None, Dropless(), taken(rows.token_R, asked_N))
            if chosen is not None:
                chosen.append(chosen_of(self.number, output.routing))
            return output.hidden

        return self.block.run(x_RD, mix, feed, asked_N)


def chosen_of(layer: int, routing: Routing) -> Chosen:
    """Raises ConfigError for a router that does not give every token as many experts."""
    if routing.top_k is None:
        raise ConfigError(
            f"the router of layer {layer} gives tokens different numbers of experts, which a step "
            "cannot give out; record the routing of whole passes instead"
        )
    of_token = (-1, routing.top_k)
    expert_RK, weight_RK = routing.expert_N.view(of_token), routing.weight_N.view(of_token)
    return Chosen(layer, routing.num_experts, expert_RK, weight_RK.float())


class ModuleSteps:
    """See `Steps`. The modules may be packed or not; the decoder must be in eval mode.

    Raises ConfigError for `Routes` that limit experts or are called between layers.
    """

    def __init__(self, decoder: Decoder, state: State, angles: AngleTables) -> None:
        self._decoder, self._angles = decoder, angles
        self._layers = [
            Layer.of(decoder, number, kept.kv) for number, kept in enumerate(state.layers)
        ]

    def __call__(
        self, rows: Rows, phase: Phase, asked_N: Tensor, routes: Routes | None = None
    ) -> Tensor:
        if routes is not None and (routes.limit_R is not None or routes.between is not None):
            raise ConfigError(
                "only the native program limits experts and calls between layers; leave out "
                "limit_R and between"
            )
        chosen: list[Chosen] | None = None if routes is None else []
        with rows_alone(), in_phase(phase):
            x_RD = self._decoder.embed(rows.token_R)
            ropes = self._angles.at(rows.angle_R, self._decoder.turning_dtype(x_RD.dtype))
            *all_but_last, last = self._layers
            for layer in all_but_last:
                x_RD = layer(x_RD, rows, ropes[layer.base], phase, None, chosen)
            # Of the others the last layer's keys and values alone are needed, unless their choices
            # are.
            some_N = asked_N if routes is None else None
            x_ND = last(x_RD, rows, ropes[last.base], phase, some_N, chosen)
            if routes is not None:
                routes.chosen, x_ND = tuple(chosen or ()), x_ND[asked_N]
            return self._decoder.logits(x_ND).float()
