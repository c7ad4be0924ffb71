"""Traces of Mixtura's language models: their description, recording and replay.

B sequences, S tokens of each sequence in one pass.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtura.errors import ConfigError
from mixtura.models.language_model import DecoderOutput, LanguageModel
from mixtura.models.state import State
from mixtura.moe import MoE, moe_layers
from mixtura.moe.routers.token_choice import TokenRows
from mixtura.trace import TracedLayer, TraceMeta, TraceReader, TraceWriter
from mixtura.trace.meta import Probabilities
from mixtura.tracing.record import Recorder
from mixtura.tracing.replay import ReplayedWeights
from mixtura.tracing.replay import replay as replay_layers


def numbered_layers(model: LanguageModel) -> Mapping[int, MoE]:
    """The MoE layers by their numbers in the model."""
    return dict(zip(model.config.moe_shapes, moe_layers(model), strict=True))


def trace_meta(
    model: LanguageModel,
    name: str,
    layers: Sequence[int] | None = None,
    probabilities: Probabilities | None = None,
    tokenizer: str | None = None,
    tokenizer_digest: str | None = None,
) -> TraceMeta:
    """The description of a trace of the model's layers `layers`, by default all MoE layers.

    Raises ConfigError for a dense model, and for a layer that has no MoE.
    """
    found = numbered_layers(model)
    if not found:
        raise ConfigError(f"{name} has no MoE layer, so there is no routing to record")
    chosen = sorted(set(found if layers is None else layers))
    for number in chosen:
        if number not in found:
            raise ConfigError(
                f"layer {number} of {name} is no MoE layer; these are {', '.join(map(str, found))}"
            )
    return TraceMeta(
        model=name,
        vocabulary=model.config.vocabulary,
        layers=tuple(_traced(number, found[number]) for number in chosen),
        probabilities=probabilities,
        tokenizer=tokenizer,
        tokenizer_digest=tokenizer_digest,
    )


def _traced(number: int, layer: MoE) -> TracedLayer:
    # Only routers of the class TokenRows can have groups of experts.
    router = layer.router
    grouped = router if isinstance(router, TokenRows) else None
    return TracedLayer(
        layer=number,
        num_experts=layer.config.num_experts,
        top_k=layer.config.top_k,
        num_groups=1 if grouped is None else grouped.num_groups,
        groups_kept=1 if grouped is None else grouped.groups_kept,
    )


@contextmanager
def record(model: LanguageModel, writer: TraceWriter) -> Iterator[Recorder]:
    """Within the block, every forward pass of the model is written to the trace.

    A pass without a state begins new sequences. A pass with the state of the previous pass
    continues that pass's sequences. If another pass came in between, or if the state was shortened,
    the tokens are recorded as new sequences, whose first position is then not 0.
    """
    recorder = Recorder(writer)
    listener = _Listener(recorder, inspect.signature(model.forward))
    hook = model.register_forward_hook(listener, with_kwargs=True)
    try:
        yield recorder
    finally:
        hook.remove()


class _Listener:
    """A model's forward hook, which passes the routing of all layers to the recorder."""

    def __init__(self, recorder: Recorder, signature: inspect.Signature) -> None:
        self._recorder, self._signature = recorder, signature
        self._state: State | None = None
        self._end = 0

    def __call__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        named: dict[str, Any],
        output: DecoderOutput,
    ) -> None:
        given = self._signature.bind(*args, **named).arguments
        tokens_BS: Tensor = given["tokens_BS"]
        state: State | None = given.get("state")
        end = tokens_BS.shape[1] if state is None else state.length
        start = end - tokens_BS.shape[1]
        if start == 0 or state is not self._state or start != self._end:
            self._recorder.begin(len(tokens_BS), start)
        self._state, self._end = state, end
        tokens_BS, valid_BS = _as_read(tokens_BS, given.get("valid_BS"), output)
        for number, layer in enumerate(output.layers):
            if layer is not None:
                self._recorder.take(number, layer.routing)
        self._recorder.end_pass(tokens_BS, valid_BS)


def _as_read(
    tokens_BS: Tensor, valid_BS: Tensor | None, output: DecoderOutput
) -> tuple[Tensor, Tensor | None]:
    """(tokens_BS, valid_BS) of a pass, with padding in front for tokens that are read again.

    Beyond LongRoPE's original context, a decoder reads the earlier tokens of a sequence again. The
    padding is not valid, so a trace has each token once, with the routing of its first reading.
    """
    again = output.moe[0].routing.num_tokens // len(tokens_BS) - tokens_BS.shape[1]
    if again == 0:
        return tokens_BS, valid_BS
    valid_BS = torch.ones_like(tokens_BS, dtype=torch.bool) if valid_BS is None else valid_BS
    return F.pad(tokens_BS, (again, 0)), F.pad(valid_BS, (again, 0), value=False)


@contextmanager
def replay(
    model: LanguageModel,
    trace: TraceReader,
    sequences: Sequence[int],
    weights: ReplayedWeights = "recorded",
) -> Iterator[None]:
    """Within the block the model routes as recorded; see `mixtura.tracing.replay.replay`."""
    with replay_layers(model, numbered_layers(model), trace, sequences, weights):
        yield
