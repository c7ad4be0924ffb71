"""Selects texts, and gives them and their routing as plain data for the page.

T tokens, K choices per token, E experts, P kept probabilities per token, D domains.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtura.data import Corpus, TokenFile
from mixtura.insight.sample import ABSENT, Choices, Reading, read, spread_windows, token_texts
from mixtura.insight.specialisation import Specialisation, specialisation, telling_tokens
from mixtura.models import LanguageModel
from mixtura.progress import Progress

Tree = dict[str, Any]

_TEXTS = 4
_TEXT_TOKENS = 1024
_STUDIED_TOKENS = 2**15
# The page has at most this many probabilities of a token, and shows the others as one sum.
_KEPT = 16
_TELLING = 6
_FEW = 20
# The number of places in the held-out text from which the texts are selected.
_CANDIDATES = 24
# A text begins at most this many tokens after its place, so that it begins with a line.
_LINE = 400


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the corpus whose held-out side is read, and the model's training step."""

    decoder: LanguageModel
    corpus: Corpus
    step: int


def texts(subject: Subject, length: int, progress: Progress) -> tuple[Tree, Tree]:
    """The values of the page's keys `text` and `domains`.

    The model reads windows of `length` tokens, as in training.
    """
    corpus, decoder = subject.corpus, subject.decoder
    window = min(length, decoder.config.context, max(2, len(corpus.heldout)))
    starts = _chosen_starts(corpus, max(window, _TEXT_TOKENS // window * window))
    studied_T = _studied(corpus.heldout, window)
    tokens_T = np.asarray(corpus.heldout.tokens)[studied_T]
    studied = read(decoder, tokens_T, window, probs=False, progress=progress)
    domains_T = np.asarray(corpus.heldout.domains)[studied_T]
    found = [
        specialisation(domains_T, c.first_T, len(corpus.domains), c.num_experts)
        for c in studied.layers
    ]
    shown = [_text(subject, start, window) for start in starts]
    tokens_D = np.bincount(domains_T, minlength=len(corpus.domains))
    return _text_tree(shown, found), _domain_tree(subject, studied, found, tokens_D)


def _studied(heldout: TokenFile, window: int) -> NDArray[np.int64]:
    """The indices of tokens in windows that are spread evenly over the held-out text."""
    starts = spread_windows(len(heldout), window, max(1, _STUDIED_TOKENS // window))
    return np.concatenate([np.arange(s, min(s + window, len(heldout))) for s in starts])


def _chosen_starts(corpus: Corpus, length: int) -> list[int]:
    """The indices of the texts' first tokens, in the corpus's order.

    Texts with the most even mixture of domains are selected.
    """
    starts = spread_windows(len(corpus.heldout), length, _CANDIDATES)
    starts = [_line_start(corpus, start) for start in starts]
    mixed = sorted(starts, key=lambda s: -_mixture(corpus.heldout.domains[s : s + length]))
    return sorted(mixed[:_TEXTS])


def _mixture(domains_T: NDArray[np.uint8]) -> float:
    """Entropy of the tokens' domains, in nats."""
    share_D = np.bincount(domains_T) / max(1, len(domains_T))
    return float(-(share_D[share_D > 0] * np.log(share_D[share_D > 0])).sum())


def _line_start(corpus: Corpus, start: int) -> int:
    """The index after the next line break or document's end; `start` if none is within `_LINE`."""
    if start == 0:
        return 0
    tokenizer = corpus.tokenizer
    for index, token in enumerate(corpus.heldout.tokens[start : start + _LINE].tolist()):
        if token == tokenizer.end_of_document or "\n" in tokenizer.decode([token]):
            return start + index + 1
    return start


@dataclass(frozen=True, slots=True)
class _Text:
    reading: Reading
    token_texts: list[str]
    domains_T: NDArray[np.uint8]
    ended: list[int]
    """indices of tokens that end a document"""


def _text(subject: Subject, start: int, window: int) -> _Text:
    heldout, tokenizer = subject.corpus.heldout, subject.corpus.tokenizer
    place = slice(start, start + max(window, _TEXT_TOKENS // window * window))
    tokens_T = np.asarray(heldout.tokens[place], np.int64)
    return _Text(
        # Windows overlap by half, so that a token has at least half a window before it, except at
        # the beginning of the text.
        reading=read(subject.decoder, tokens_T, window, max(1, window // 2)),
        token_texts=token_texts(tokenizer, tokens_T),
        domains_T=np.asarray(heldout.domains[place]),
        ended=np.flatnonzero(tokens_T == tokenizer.end_of_document).tolist(),
    )


def _text_tree(shown: list[_Text], found: list[Specialisation]) -> Tree:
    layers = shown[0].reading.layers
    num_experts = max(layer.num_experts for layer in layers)
    kept = min(num_experts, _KEPT)
    choices = max(c.chosen_TK.shape[1] for text in shown for c in text.reading.layers)
    tokens = sum(len(text.token_texts) for text in shown)
    characters = sum(len(piece) for text in shown for piece in text.token_texts)
    return {
        "experts": num_experts,
        "kept": kept,
        "choices": choices,
        # The page shows edges between tokens, but not if most tokens are single letters.
        "whole": characters > 1.5 * tokens,
        "first_layer": int(np.argmax([layer.information for layer in found])),
        "texts": [
            {
                "label": str(number),
                "pieces": text.token_texts,
                "ended": text.ended,
                "bits": [None if np.isnan(b) else round(float(b), 2) for b in text.reading.bits_T],
                "domain": text.domains_T.tolist(),
                "layers": [packed(c, choices, kept) for c in text.reading.layers],
            }
            for number, text in enumerate(shown, start=1)
        ],
    }


def packed(choices: Choices, width: int, kept: int) -> Tree:
    """A layer's choices as little-endian arrays in base64.

    Each token has `width` choices, and `kept` probabilities in units of 1/65535. If the layer has
    fewer, the arrays are filled with the expert -1 and with 0. `computed` is left out if every
    chosen expert computed its row.
    """
    spare = ((0, 0), (0, width - choices.chosen_TK.shape[1]))
    tree = {
        "chosen": _base64(np.pad(choices.chosen_TK, spare, constant_values=ABSENT), "<i2"),
        "weight": _base64(np.pad(choices.weight_TK, spare), "<f4"),
    }
    if not np.array_equal(choices.chosen_TK, choices.computed_TK):
        tree["computed"] = _base64(
            np.pad(choices.computed_TK, spare, constant_values=ABSENT), "<i2"
        )
    if choices.probs_TE is not None:
        likely_TP = np.argsort(-choices.probs_TE, axis=1, kind="stable")[:, :kept]
        probs_TP = np.take_along_axis(choices.probs_TE, likely_TP, axis=1)
        fewer = ((0, 0), (0, kept - likely_TP.shape[1]))
        tree["likely"] = _base64(np.pad(likely_TP, fewer, constant_values=ABSENT), "<i2")
        tree["probs"] = _base64((np.pad(probs_TP, fewer) * 65535).round(), "<u2")
    return tree


def _base64(values: NDArray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode("ascii")


def _domain_tree(
    subject: Subject, studied: Reading, found: list[Specialisation], tokens_D: NDArray[np.int64]
) -> Tree:
    tokenizer = subject.corpus.tokenizer
    end = tokenizer.end_of_document
    return {
        "names": list(subject.corpus.domains),
        "tokens": tokens_D.tolist(),
        # A domain with fewer than 20 tokens per expert has shares that are mostly chance.
        "few": (tokens_D < _FEW * max(one.counts_DE.shape[1] for one in found)).tolist(),
        "entropy": found[0].domain_entropy,
        "layers": [
            {
                "layer": choices.layer,
                "counts": one.counts_DE.tolist(),
                "information": one.information,
                "telling": [
                    ["⟨end⟩" if token == end else tokenizer.decode([token]) for token in tokens]
                    for tokens in telling_tokens(
                        studied.tokens_T, choices.first_T, choices.num_experts, _TELLING
                    )
                ],
            }
            for choices, one in zip(studied.layers, found, strict=True)
        ],
    }
