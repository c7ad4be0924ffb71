"""Translates a tokenizer to the metadata of a GGUF file."""

import json
from dataclasses import dataclass
from typing import Any

from mixtura.errors import CheckpointError
from mixtura.tokenizers import CheckpointTokenizer, Tokenizer
from mixtura.tokenizers.byte_level_parts import byte_level_parts
from mixtura.tokenizers.exported_tokenizer import as_checkpoint
from mixtura.tokenizers.piece_text import SPACE
from mixtura.tokenizers.pieces import PieceKind
from mixtura.tokenizers.sentencepiece_parts import is_scored_pieces, sentencepiece_parts

_NAMES = {"bos_token": "bos", "unk_token": "unknown", "pad_token": "padding"}
# Roles of tokens that end an answer, besides the role eos.
_FURTHER_ENDS = ("eot", "eom")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Each token's text, kind and score, and further metadata of this kind of tokenizer."""

    tokens: list[str | None]
    """the text of each token number; None for a number without a token"""
    kinds: list[PieceKind]
    scores: list[float] | None
    further: dict[str, Any]


def tokenizer_keys(tokenizer: Tokenizer, vocabulary: int) -> dict[str, Any]:
    """Make the metadata keys `tokenizer.*`, for a model with `vocabulary` tokens.

    Raises DataError if llama.cpp would not reproduce the tokenizer's tokens, and CheckpointError if
    the tokenizer has more tokens than the model.
    """
    own = as_checkpoint(tokenizer)
    is_scored = is_scored_pieces(json.loads(own.to_json()))
    held = _scored_pieces(own) if is_scored else _byte_level(own)
    count = len(held.tokens)
    if count > vocabulary:
        raise CheckpointError(
            f"the tokenizer has {count} tokens and the model {vocabulary}; they belong to "
            "different models"
        )
    spare = vocabulary - count
    tokens = [
        f"[PAD{number}]" if token is None else token
        for number, token in enumerate((*held.tokens, *[None] * spare))
    ]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "llama" if is_scored else "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*map(int, held.kinds), *[int(PieceKind.UNUSED)] * spare],
        **{f"tokenizer.ggml.{key}": value for key, value in held.further.items()},
        **{f"tokenizer.ggml.{name}_token_id": token for name, token in _ids(own, tokens).items()},
        "tokenizer.ggml.add_bos_token": bool(own.begin),
        "tokenizer.ggml.add_eos_token": False,
    }
    if held.scores is not None:
        found["tokenizer.ggml.scores"] = held.scores + [0.0] * spare
    if own.chat_template is not None:
        found["tokenizer.chat_template"] = own.chat_template
    return found


def _byte_level(tokenizer: CheckpointTokenizer) -> _Vocabulary:
    parts = byte_level_parts(tokenizer)

    def kind(number: int, token: str | None) -> PieceKind:
        if token is None:
            return PieceKind.UNUSED
        if number in parts.special:
            return PieceKind.CONTROL
        return PieceKind.USER_DEFINED if number in parts.added else PieceKind.NORMAL

    kinds = [kind(number, token) for number, token in enumerate(parts.tokens)]
    further = {"pre": parts.splitting, "merges": list(parts.merges)}
    return _Vocabulary(list(parts.tokens), kinds, None, further)


def _scored_pieces(tokenizer: CheckpointTokenizer) -> _Vocabulary:
    parts = sentencepiece_parts(tokenizer)
    kinds = [PieceKind(kind) for kind in parts.pieces.kinds]
    # llama.cpp searches the text for user-defined tokens, so these are spelt with plain spaces.
    tokens: list[str | None] = [
        text.replace(SPACE, " ") if kind == PieceKind.USER_DEFINED else text
        for text, kind in zip(parts.pieces.texts, kinds, strict=True)
    ]
    further = {"pre": "default", "add_space_prefix": parts.prefix}
    return _Vocabulary(tokens, kinds, list(parts.pieces.scores), further)


def _ids(tokenizer: CheckpointTokenizer, tokens: list[str]) -> dict[str, int]:
    """Map each role of the tokenizer, such as "bos", to the number of its token."""
    number_of = {token: number for number, token in enumerate(tokens)}
    names = tokenizer.facts.names
    # A tokenizer may give a role to a token that its vocabulary lacks; that role is left out.
    found = {
        part: number_of[names[name]]
        for name, part in _NAMES.items()
        if names.get(name) in number_of
    }
    if tokenizer.begin:
        found["bos"] = tokenizer.begin[0]
    named = number_of.get(names["eos_token"]) if "eos_token" in names else None
    end = tokenizer.end_of_document if named is None else named
    further = sorted(tokenizer.ends - {end})
    return {**found, "eos": end, **dict(zip(_FURTHER_ENDS, further, strict=False))}
