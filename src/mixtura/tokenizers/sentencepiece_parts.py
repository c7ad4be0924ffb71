"""Takes a tokenizer of scored pieces apart, so that llama.cpp can encode to the same tokens."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtura.errors import DataError
from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer
from mixtura.tokenizers.piece_text import SPACE
from mixtura.tokenizers.pieces import PieceKind, Pieces, byte_name, merges_of
from mixtura.tokenizers.sentencepiece_json import charsmap_of

_KEEP = "keep the model as a Hugging Face folder"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


@dataclass(frozen=True, slots=True)
class SentencePieceParts:
    """The parts of a tokenizer; with them llama.cpp encodes text to the same tokens."""

    pieces: Pieces
    """the score of a piece is minus the rank of the first merge that makes the piece, since a
    tokenizer.json ranks merges but has no scores"""
    prefix: bool
    """whether a space is added before a text"""


def is_scored_pieces(tree: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds scored pieces: it has byte fallback or a unigram model."""
    return bool(tree["model"].get("byte_fallback")) or tree["model"].get("type") == "Unigram"


def sentencepiece_parts(tokenizer: CheckpointTokenizer) -> SentencePieceParts:
    """Take `tokenizer` apart.

    Raises DataError if the encoding of a text depends on more than the pieces, the order of their
    merges, and the prefix.
    """
    tree = json.loads(tokenizer.to_json())
    if tree["model"]["type"] != "BPE":
        raise DataError(
            f"the tokenizer is of the kind {tree['model']['type']}, which llama.cpp's kinds of "
            f"tokenizer do not hold exactly; {_KEEP}"
        )
    spelling = tokenizer.facts.spelling
    if spelling is None:
        prefix = _prefix_of(tree)
    else:
        prefix = spelling.prefix
        if spelling.collapse or charsmap_of(tree) is not None:
            raise DataError(
                f"the tokenizer replaces characters or drops spaces, as llama.cpp does not; {_KEEP}"
            )
    pieces = _pieces(tree)
    added = {one["content"] for one in tree["added_tokens"]}
    # Added tokens are found in a text before any merge, so merges that make them have no effect.
    stated = {(left, right) for left, right in _merges(tree) if left + right not in added}
    if set(merges_of(pieces)) != stated:
        raise DataError(
            "the tokenizer's merges are not all the ways to make its pieces, which llama.cpp "
            f"would use; {_KEEP}"
        )
    return SentencePieceParts(pieces, prefix)


def _prefix_of(tree: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json that Mixtura did not write adds a space before a text.

    Raises DataError for steps that llama.cpp lacks.
    """
    prefix = False
    for step in (*_steps(tree["normalizer"]), *_steps(tree["pre_tokenizer"])):
        match step["type"]:
            case "Prepend" if step["prepend"] == SPACE:
                prefix = True
            case "Metaspace" if step["replacement"] == SPACE and not step.get("split", True):
                prefix = prefix or step["prepend_scheme"] != "never"
            # Gemma has a split at spaces, which finds none: its normalizer has replaced them all.
            case "Split" if step["pattern"] == {"String": " "}:
                pass
            case "Replace" if step == _REPLACE:
                pass
            case other:
                raise DataError(
                    f"the tokenizer has a step {other}, which llama.cpp has not; {_KEEP}"
                )
    return prefix


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    inner = step.get("normalizers", step.get("pretokenizers"))
    if inner is None:
        yield step
        return
    for one in inner:
        yield from _steps(one)


def _merges(tree: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for pair in tree["model"]["merges"]:
        yield pair.split(" ", 1) if isinstance(pair, str) else pair


def _pieces(tree: Mapping[str, Any]) -> Pieces:
    model = tree["model"]
    special = {one["content"]: one["special"] for one in tree["added_tokens"]}
    number_of: dict[str, int] = {
        **model["vocab"],
        **{one["content"]: one["id"] for one in tree["added_tokens"]},
    }
    # The rank of a piece is the rank of the first merge that makes the piece.
    made = dict.fromkeys(left + right for left, right in _merges(tree))
    rank_of: dict[str, int] = {text: rank for rank, text in enumerate(made)}
    bytes_of = {byte_name(byte) for byte in range(256)} if model["byte_fallback"] else set()

    def kind(text: str) -> PieceKind:
        if text == model["unk_token"]:
            return PieceKind.UNKNOWN
        if text in special:
            return PieceKind.CONTROL if special[text] else PieceKind.USER_DEFINED
        return PieceKind.BYTE if text in bytes_of else PieceKind.NORMAL

    count = 1 + max(number_of.values())
    texts = [f"[PAD{number}]" for number in range(count)]
    kinds, scores = [int(PieceKind.UNUSED)] * count, [0.0] * count
    for text, number in number_of.items():
        texts[number], kinds[number] = text, kind(text)
        if kinds[number] == PieceKind.NORMAL:
            scores[number] = -float(rank_of.get(text, len(rank_of) + number))
    return Pieces("bpe", texts, scores, kinds, model["byte_fallback"])
