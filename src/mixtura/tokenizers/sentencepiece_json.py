"""Writes scored pieces as a tokenizer.json, and derives from it the encoder that Mixtura uses."""

import base64
import json
from typing import Any

from mixtura.tokenizers.charsmap import Charsmap
from mixtura.tokenizers.checkpoint_tokenizer import Spelling
from mixtura.tokenizers.piece_text import SPACE, decoder_steps
from mixtura.tokenizers.pieces import PieceKind, Pieces, byte_name, model_of

Tree = dict[str, Any]


def sentencepiece_json(
    pieces: Pieces, spelling: Spelling, *, charsmap: bytes = b"", begin: str | None = None
) -> str:
    """Write pieces and spelling as a tokenizer.json; some spellings cannot be expressed exactly.

    `begin` is the token that every text begins with. Raises DataError for pieces that the format
    cannot express.
    """
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, text, special=kind != PieceKind.USER_DEFINED)
            for number, (text, kind) in enumerate(zip(pieces.texts, pieces.kinds, strict=True))
            if _is_added(pieces, text, kind)
        ],
        "normalizer": _normalizer(spelling, charsmap),
        "pre_tokenizer": _pre_tokenizer(spelling),
        "post_processor": None if begin is None else _beginning(begin, pieces.texts.index(begin)),
        "decoder": {"type": "Sequence", "decoders": decoder_steps(spelling.strips)},
        "model": model_of(pieces),
    }
    return json.dumps(tree, ensure_ascii=False)


def charsmap_of(tree: Tree, origin: str = "the tokenizer") -> Charsmap | None:
    """Read the map of characters from a tokenizer.json that `sentencepiece_json` wrote.

    Returns None if there is no map. Raises DataError, whose message begins with `origin`, if the
    map is damaged.
    """
    for one in (tree["normalizer"] or {}).get("normalizers", []):
        if one["type"] == "Precompiled":
            return Charsmap(base64.b64decode(one["precompiled_charsmap"]), origin)
    return None


def plain_of(tree: Tree) -> Tree:
    """Return a tokenizer.json for prepared text: text whose spaces are already replaced by "▁"."""
    added = [{**one, "normalized": False} for one in tree["added_tokens"]]
    return {**tree, "added_tokens": added, "normalizer": None, "pre_tokenizer": None}


def lattice_of(tree: Tree) -> Tree:
    """Return a unigram tokenizer.json to encode prepared text; it is not used to decode.

    The library looks for every piece of the vocabulary in a text, but no text may be encoded as a
    special token or a byte piece. These pieces therefore get names that no prepared text contains.
    A character without a piece becomes the unknown token.
    """
    shown = {one["content"] for one in tree["added_tokens"] if not one["special"]}
    never = {one["content"] for one in tree["added_tokens"]} - shown
    if tree["model"]["byte_fallback"]:
        never |= {byte_name(byte) for byte in range(256)}
    vocabulary = tree["model"]["vocab"]
    best = max((score for text, score in vocabulary if text not in never | shown), default=0.0)

    def renamed(number: int, text: str, score: float) -> tuple[str, float]:
        if text in never:
            # The name begins with a space, and a prepared text contains none.
            return f" {number}", 0.0
        # SentencePiece gives a user-defined piece this score, so that the piece is always chosen.
        return text, len(text.encode()) * best - 0.1 if text in shown else score

    of_number = [renamed(number, *entry) for number, entry in enumerate(vocabulary)]
    model = {**tree["model"], "vocab": of_number, "byte_fallback": False}
    return {**plain_of(tree), "added_tokens": [], "post_processor": None, "model": model}


def unigram_bytes(tree: Tree) -> tuple[int, list[int]] | None:
    """Return the unknown token, and the token of each byte from 0 to 255.

    Returns None unless the model is a unigram model with byte fallback.
    """
    model = tree["model"]
    if model["type"] != "Unigram" or not model["byte_fallback"]:
        return None
    number_of = {text: number for number, (text, _) in enumerate(model["vocab"])}
    return model["unk_id"], [number_of[byte_name(byte)] for byte in range(256)]


def _is_added(pieces: Pieces, text: str, kind: int) -> bool:
    if kind == PieceKind.UNUSED:
        # No text may become an unused piece, so the piece is made a special token. In BPE no merge
        # makes an unused piece, so only pieces of one character need this.
        return pieces.algorithm == "unigram" or len(text) == 1
    return kind in {PieceKind.CONTROL, PieceKind.UNKNOWN, PieceKind.USER_DEFINED}


def _added(number: int, text: str, special: bool) -> Tree:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        # A piece with "▁" can be found only after the normalizer has replaced each space by "▁".
        "normalized": SPACE in text and not special,
        "special": special,
    }


def _normalizer(spelling: Spelling, charsmap: bytes) -> Tree | None:
    steps: list[Tree] = []
    if charsmap:
        encoded = base64.b64encode(charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if spelling.collapse:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if spelling.prefix and spelling.prefix_after != "nothing":
        steps.append({"type": "Prepend", "prepend": SPACE})
    if not _by_first_word(spelling):
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _pre_tokenizer(spelling: Spelling) -> Tree | None:
    if not _by_first_word(spelling):
        return None
    scheme = {"replacement": SPACE, "prepend_scheme": "first", "split": False}
    return {"type": "Metaspace", **scheme}


def _by_first_word(spelling: Spelling) -> bool:
    """Whether to use Metaspace: only this step can add a space to the beginning of a text without
    adding one after special tokens.
    """
    return spelling.prefix and spelling.prefix_after == "nothing"


def _beginning(begin: str, number: int) -> Tree:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    mark = {"SpecialToken": {"id": begin, "type_id": 0}}
    pair = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [mark, text],
        "pair": [mark, text, pair],
        "special_tokens": {begin: {"id": begin, "ids": [number], "tokens": [begin]}},
    }
