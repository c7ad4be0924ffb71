"""A step of a packed decoder as one call of the compiled kernels.

`ModuleSteps` computes the same steps through torch's modules. Tests compare the two.

R rows, N logit rows, D width, E experts, L MoE layers, K experts per token, S bytes of an expert,
V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mixtura.engine.program_gate import gate_of
from mixtura.engine.program_mixers import mixer_of, why_no_mixer
from mixtura.engine.program_parts import Parts
from mixtura.engine.rope_tables import RopeTables
from mixtura.engine.steps import Chosen, Routes, StepRows
from mixtura.kernels.cached_attention import cache_of
from mixtura.kernels.native import InstructionSet, native, number_of
from mixtura.kernels.packed.experts import ACTIVATIONS
from mixtura.kernels.phase import PHASES, Phase
from mixtura.models import Decoder, State
from mixtura.models.decoder import Block
from mixtura.models.norms import UnitOffsetRMSNorm
from mixtura.moe import MoE
from mixtura.packed import PackedEmbedding, PackedExperts, PackedFFN, PackedLinear

_NORMS = (nn.Identity, nn.RMSNorm, nn.LayerNorm, UnitOffsetRMSNorm)


class Program:
    """Implements `Steps` in the compiled kernels, which compute all layers in one call.

    The decoder must be one for which `why_not` gives None. The program uses the tensors that the
    decoder has at construction. `experts` maps the number of an MoE layer to a table_E of the
    addresses of its experts' bytes, int64. The caller may write new addresses there between two
    steps, or while `Routes.between` is being called. Address 0 means that the expert is not in
    memory. Where there is a `between`, a row that chooses such an expert raises IndexError.
    """

    def __init__(
        self,
        decoder: Decoder,
        state: State,
        angles: RopeTables,
        kernels: InstructionSet = "auto",
    ) -> None:
        reason = why_not(decoder)
        assert reason is None, reason
        module = native()
        assert module is not None, "the reason would have been this"
        self._vocabulary, self._state = decoder.config.vocabulary, state
        self._set = number_of(kernels)
        parts = Parts(module)
        scales = decoder.config.multipliers
        self._program: Any = module.Program(
            parts.embedding(decoder.embedding),
            scales.embedding,
            scales.residual,
            parts.norm(decoder.norm),
            parts.linear(decoder.head),
            scales.logits,
        )
        # The rows of a step are checked against one cache, which has the slots of all.
        self._cache = cache_of(module, state.kv_layers[0].kv)
        for number, (block, kept) in enumerate(zip(decoder.blocks, state.layers, strict=True)):
            assert isinstance(block, Block), "a decoder has nothing else"
            self._program.add(
                parts.norm(block.attention_norm),
                mixer_of(parts, block, number, kept, angles),
                parts.norm(block.attention_post_norm),
                _ffn(parts, number, block),
            )
        self._held = parts.held
        self.experts = parts.experts_of
        ffns = [block.get_submodule("ffn") for block in decoder.blocks]
        routers = {n: ffn.router for n, ffn in enumerate(ffns) if isinstance(ffn, MoE)}
        self._routed = [(number, router.num_experts) for number, router in routers.items()]
        # All MoE layers share the same top_k: where layers differ, only the number of experts does.
        self._top_k = max((router.top_k for router in routers.values()), default=0)
        (first, *_) = angles.by_base.values()
        self._num_angles = len(first.cos_SC)

    def __call__(
        self, rows: StepRows, phase: Phase, logit_row_N: Tensor, routes: Routes | None = None
    ) -> Tensor:
        every = (rows.token_R, rows.slot_R, rows.position_R, rows.angle_R, logit_row_N)
        token_R, slot_R, position_R, angle_R, logit_row_N = (of_R.contiguous() for of_R in every)
        logits_NV = torch.empty(len(logit_row_N), self._vocabulary)
        given = (
            self._cache,
            self._num_angles,
            token_R.data_ptr(),
            len(rows),
            slot_R.data_ptr(),
            position_R.data_ptr(),
            angle_R.data_ptr(),
            logit_row_N.data_ptr(),
            len(logit_row_N),
            PHASES[phase],
            self._set,
            logits_NV.data_ptr(),
        )
        if routes is None:
            self._program.step(*given)
        else:
            self._step_routed(given, len(rows), routes)
        return logits_NV

    def _step_routed(self, given: tuple[Any, ...], num_rows: int, routes: Routes) -> None:
        expert_LRK = torch.empty(len(self._routed), num_rows, self._top_k, dtype=torch.int64)
        weight_LRK = torch.empty(expert_LRK.shape)
        of_layers = zip(self._routed, expert_LRK.unbind(), weight_LRK.unbind(), strict=True)
        routes.chosen = tuple(Chosen(*one, *rest) for one, *rest in of_layers)
        limit_R = None if routes.limit_R is None else routes.limit_R.contiguous()
        assert limit_R is None or (limit_R.shape == (num_rows,) and limit_R.dtype == torch.int64)
        self._program.step_routed(
            *given,
            expert_LRK.data_ptr(),
            weight_LRK.data_ptr(),
            0 if limit_R is None else limit_R.data_ptr(),
            None if routes.between is None else _by_number(routes.between, routes.chosen),
        )


def _by_number(
    between: Callable[[Chosen], None], chosen: tuple[Chosen, ...]
) -> Callable[[int], None]:
    """`between` as a function of the layer's number, as the compiled module calls it."""
    of_layer = {one.layer: one for one in chosen}
    return lambda layer: between(of_layer[layer])


def why_not(decoder: Decoder) -> str | None:
    """Why a program cannot compute this decoder; None where it can."""
    if native() is None:
        return "there are no compiled kernels"
    if not isinstance(decoder.head, PackedLinear):
        return "a head that is not packed"
    if not isinstance(decoder.embedding, PackedEmbedding):
        return "an embedding that is not packed"
    for block in decoder.blocks:
        assert isinstance(block, Block), "a decoder has nothing else"
        reason = why_no_mixer(block) or _why_not_ffn(block.ffn)
        if reason is not None:
            return reason
    norms = [module for block in decoder.blocks for module in _norms_of(block)]
    return next((f"a {type(n).__name__}" for n in norms if not isinstance(n, _NORMS)), None)


def _norms_of(block: nn.Module) -> list[nn.Module]:
    return [module for name, module in block.named_modules() if name.endswith("norm")]


def _why_not_ffn(ffn: nn.Module) -> str | None:
    experts = ffn.experts if isinstance(ffn, MoE) else ffn
    if isinstance(experts, PackedExperts) and experts.activation not in ACTIVATIONS:
        return f"activation={experts.activation}"
    if not isinstance(ffn, MoE):
        return None if isinstance(ffn, PackedFFN) else f"a {type(ffn).__name__}"
    if not isinstance(ffn.experts, PackedExperts):
        return "experts that are not packed"
    if ffn.residual is not None:
        return "a residual branch beside experts"
    if ffn.shared is not None and not isinstance(ffn.shared, PackedFFN):
        return "shared experts that are not packed"
    return None if gate_of(ffn.router) is not None else f"router kind={ffn.config.router.name}"


def _ffn(parts: Parts, number: int, block: Block) -> Any:
    norm, post_norm, ffn = parts.norm(block.ffn_norm), parts.norm(block.ffn_post_norm), block.ffn
    if not isinstance(ffn, MoE):
        return parts.module.FfnBlock(norm, None, parts.experts(ffn), None, 0, post_norm)
    gate = gate_of(ffn.router)
    assert gate is not None, "why_not has looked"
    return parts.module.FfnBlock(
        norm,
        gate.of(parts.module, parts.at, parts.floats),
        parts.experts(ffn.experts, number),
        None if ffn.shared is None else parts.experts(ffn.shared),
        parts.floats(None if ffn.shared_gate is None else ffn.shared_gate.weight),
        post_norm,
    )
