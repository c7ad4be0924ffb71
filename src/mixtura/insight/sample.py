"""Runs a model over windows of held-out text, and collects its routing as arrays.

S tokens of a window, T tokens of all windows, K choices per token, E experts, N routed rows,
B sequences, V tokens of the vocabulary.
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
    """One layer's routing of T tokens."""

    layer: int
    """the layer's number in the model"""
    num_experts: int
    chosen_TK: NDArray[np.int64]
    """chosen experts in the order of choice; -1 if a token has fewer than K choices"""
    computed_TK: NDArray[np.int64]
    """experts that computed the rows; -1 for a dropped row, or if a token has fewer choices"""
    weight_TK: NDArray[np.float32]
    """combine weights; 0 for a dropped row"""
    probs_TE: NDArray[np.float32] | None
    """the router's probabilities; None if they are left out, or the router has none"""

    @property
    def first_T(self) -> NDArray[np.int64]:
        """Each token's first expert; -1 for a token without experts."""
        return self.chosen_TK[:, 0]


@dataclass(frozen=True, slots=True)
class Reading:
    """T tokens, the bits that each costs to predict, and their routing."""

    tokens_T: NDArray[np.int64]
    bits_T: NDArray[np.float32]
    """each token's negative log2 probability; NaN for a window's first token"""
    layers: tuple[Choices, ...]
    """the MoE layers, in order"""


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

    A window begins every `stride` tokens. The default is `window`, so that windows do not overlap,
    as in evaluation. If several windows contain a token, its results come from the first of these
    windows, since there the most tokens precede it. Without `probs`, probs_TE is left out; it is by
    far the largest array of a layer.
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
    """A window from `start` to `end`; `new` is its first token that no earlier window covers."""

    start: int
    new: int
    end: int


def _spans(length: int, window: int, stride: int) -> Iterator[_Span]:
    covered = 0
    for start in range(0, length, stride):
        end = min(start + window, length)
        if end > covered:
            yield _Span(start, covered, end)
        covered = end


def _read_span(
    decoder: LanguageModel, tokens_T: NDArray[np.int64], span: _Span, probs: bool
) -> tuple[NDArray[np.float32], dict[int, LayerRows]]:
    """Return the window's new tokens: their bits_S, and their routed rows by layer."""
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
            with_probs = probs and moe.routing.probs_TE is not None
            rows = layer_rows(moe.routing, "float32" if with_probs else None)
            layers[layer] = rows.take(new_S)
    return bits_S[new_S], layers


def choices_of(rows: LayerRows, layer: int, num_experts: int) -> Choices:
    """Arrange a layer's rows by token and rank of choice; K is the most choices of any token."""
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
    """Starts of at most `most` windows without overlap, evenly spread over `length` tokens."""
    count = max(1, min(most, length // window))
    return [int(start) for start in np.linspace(0, max(0, length - window), count)]


def token_texts(tokenizer: Tokenizer, tokens: NDArray[np.integer]) -> list[str]:
    """The text that each token completes; "" for a token that leaves a character unfinished."""
    stream = tokenizer.stream()
    shown = [stream.push(int(token)) for token in tokens]
    if shown:
        shown[-1] += stream.finish()
    return shown
