"""What the routers do with held-out text: the model run over windows, its choices as arrays.

W windows of S tokens, T = W*S tokens, K choices per token, E experts, P probabilities kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mixtura.models import DecoderOutput, LanguageModel
from mixtura.progress import Progress, silent
from mixtura.tokenizers import Tokenizer
from mixtura.trace import ABSENT, LayerRows
from mixtura.tracing.record import layer_rows


@dataclass(frozen=True, slots=True)
class Choices:
    """What one layer's router decided for T tokens."""

    layer: int
    """its number in the model"""
    num_experts: int
    chosen_TK: NDArray[np.int64]
    """experts wished for, first choice first; -1 where a token has fewer"""
    computed_TK: NDArray[np.int64]
    """experts that computed the row; -1 where none had room"""
    weight_TK: NDArray[np.float32]
    """combine weights; 0 where no expert computed the row"""
    probs_TE: NDArray[np.float32] | None
    """what the router believed; None for a router without probabilities"""

    @property
    def first_T(self) -> NDArray[np.int64]:
        """Each token's first expert; -1 where it has none."""
        return self.chosen_TK[:, 0]


@dataclass(frozen=True, slots=True)
class Reading:
    """T tokens as the decoder read them."""

    tokens_T: NDArray[np.int64]
    bits_T: NDArray[np.float32]
    """what each token cost to predict; NaN where nothing came before it"""
    layers: tuple[Choices, ...]
    """MoE layers alone, in order"""


def read(
    decoder: LanguageModel,
    tokens_T: NDArray[np.integer],
    window: int,
    stride: int | None = None,
    *,
    probs: bool = True,
    progress: Progress = silent,
) -> Reading:
    """Run the decoder over `tokens_T` in windows of `window` tokens; the last may be shorter.

    Windows begin every `stride` tokens, by default where the last one ended, as in evaluation. A
    token that stands in several is taken from the first, where the most comes before it. Without
    `probs` each layer's probs_TE, which is by far the largest part, is left out.
    """
    tokens_T = np.asarray(tokens_T, np.int64)
    was_training = decoder.training
    decoder.eval()
    try:
        with torch.inference_mode():
            parts = []
            for span in _spans(len(tokens_T), window, stride or window):
                parts.append(_read_span(decoder, tokens_T, span, probs))
                progress("reading", span.end, len(tokens_T))
    finally:
        decoder.train(was_training)
    return Reading(
        tokens_T=tokens_T,
        bits_T=np.concatenate([bits_S for bits_S, _ in parts]),
        layers=tuple(
            choices_of(
                LayerRows.joined([layers[layer] for _, layers in parts]), layer, shape.num_experts
            )
            for layer, shape in decoder.config.moe_shapes.items()
        ),
    )


class _Span(NamedTuple):
    """A window, and the first of its tokens that no earlier window has told about."""

    start: int
    new: int
    end: int


def _spans(length: int, window: int, stride: int) -> Iterator[_Span]:
    told = 0
    for start in range(0, length, stride):
        end = min(start + window, length)
        if end > told:
            yield _Span(start, told, end)
        told = end


def _read_span(
    decoder: LanguageModel, tokens_T: NDArray[np.int64], span: _Span, probs: bool
) -> tuple[NDArray[np.float32], dict[int, LayerRows]]:
    """What each new token cost, and its rows by layer."""
    tokens_S = tokens_T[span.start : span.end]
    tokens_BS = torch.from_numpy(tokens_S)[None].to(decoder.device)
    output: DecoderOutput = decoder(tokens_BS)
    log_prob_SV = output.logits_BSV[0].float().log_softmax(-1)
    nats_S = -log_prob_SV[:-1].gather(1, tokens_BS[0, 1:, None])[:, 0]
    bits_S = np.full(len(tokens_S), np.nan, np.float32)
    bits_S[1:] = nats_S.cpu().numpy() / np.log(2)
    new_S = np.arange(span.new - span.start, len(tokens_S))
    layers: dict[int, LayerRows] = {}
    for layer, moe in enumerate(output.layers):
        if moe is not None:
            believed = probs and moe.routing.probs_TE is not None
            rows = layer_rows(moe.routing, "float32" if believed else None)
            layers[layer] = rows.take(new_S)
    return bits_S[new_S], layers


def choices_of(rows: LayerRows, layer: int, num_experts: int) -> Choices:
    """A layer's rows by token and rank of choice; K is the most choices that a token has."""
    width = int(rows.count_T.max(initial=1))
    return Choices(
        layer=layer,
        num_experts=num_experts,
        chosen_TK=rows.by_choice(rows.chosen_N, width, ABSENT),
        computed_TK=rows.by_choice(rows.computed_N, width, ABSENT),
        weight_TK=rows.by_choice(rows.weight_N, width, 0),
        probs_TE=rows.probs_TE,
    )


def spread_windows(length: int, window: int, most: int) -> list[int]:
    """Starts of up to `most` windows that do not overlap, evenly spread over `length` tokens."""
    count = max(1, min(most, length // window))
    return [int(start) for start in np.linspace(0, max(0, length - window), count)]


def pieces(tokenizer: Tokenizer, tokens: NDArray[np.integer]) -> list[str]:
    """The text that each token completes; "" for one that leaves a character unfinished."""
    stream = tokenizer.stream()
    shown = [stream.push(int(token)) for token in tokens]
    if shown:
        shown[-1] += stream.finish()
    return shown
