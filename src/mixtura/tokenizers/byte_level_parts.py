"""Takes a byte-level BPE tokenizer apart: its tokens, its merges, its split of text into words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtura.errors import DataError
from mixtura.json_reader import parse_object
from mixtura.tokenizers.byte_level import SPLITTINGS, pre_tokenizer_of
from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer
from mixtura.tokenizers.tokenizer_library import read_again
from tokenizers import Tokenizer as Backend

# These texts have all that the splits of SPLITTINGS treat differently: contractions in upper and in
# lower case, digits of several scripts, spaces, line ends, signs next to letters, and scripts that
# put no spaces between words.
_PROBES = (
    "Don't DON'T we'Ll it's I'd  x1 12 123 1234 12345678  7\u0664\u0665\u0666\u0667 \u00bd\u00b2",
    "a\tb\n\nc \n d\r\n\r\n  e   \n\t\tf(x)==[1,2];!!!\n...?? --__-- $9 #if <|x|> \u00a0\u3000y ",
    "Ünï e\u0301 Straße Привет мир 日本語テスト 한국어 हिन्दी ภาษา עברית 🙂👩‍👩‍👧 ﬁ\u200b\u017f's",
    "_snake CamelCASEWord /path/to.file don\u2019t (paren) «q» $\u20ac+=<>^~|`a`1a2 x²y",
)


@dataclass(frozen=True, slots=True)
class ByteLevelParts:
    """The parts from which `byte_level_tokenizer` can build the same tokenizer again."""

    tokens: tuple[str | None, ...]
    """tokens in the order of their numbers; None for a number without a token"""
    merges: tuple[str, ...]
    """merges in their order; each is two tokens with a space between them"""
    splitting: str
    """the name, in SPLITTINGS, of the rule that splits text into words"""
    special: frozenset[int]
    """numbers of the special tokens"""
    added: frozenset[int]
    """numbers of the tokens that are found in a text before its split, but are not special"""


def byte_level_parts(tokenizer: CheckpointTokenizer) -> ByteLevelParts:
    """Take `tokenizer` apart.

    Raises DataError if `tokenizer` is not byte-level BPE, or if SPLITTINGS does not list its split.
    """
    text = tokenizer.to_json()
    tree = parse_object(text, "the tokenizer", DataError)
    model = tree["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or not _has_byte_level(tree):
        raise DataError(
            f"the tokenizer is {_described(model)}, and not byte-level BPE, the kind that is "
            "taken apart; keep the model as a Hugging Face folder"
        )
    marks = {token["id"]: token for token in tree.get("added_tokens", [])}
    of_token = {**model["vocab"], **{one["content"]: number for number, one in marks.items()}}
    tokens: list[str | None] = [None] * (1 + max(of_token.values()))
    for token, number in of_token.items():
        tokens[number] = token
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    return ByteLevelParts(
        tuple(tokens),
        tuple(" ".join(pair) for pair in pairs),
        _splitting_of(read_again(text, "the tokenizer"), bool(model.get("ignore_merges"))),
        frozenset(number for number, one in marks.items() if one["special"]),
        frozenset(number for number, one in marks.items() if not one["special"]),
    )


def _splitting_of(backend: Backend, whole_words: bool) -> str:
    """Return the name of the first split in SPLITTINGS that splits all probes as `backend` does.

    The split must also have the given `whole_words`.
    """
    if backend.pre_tokenizer is not None:
        cuts = [backend.pre_tokenizer.pre_tokenize_str(probe) for probe in _PROBES]
        for name, splitting in SPLITTINGS.items():
            cutter = pre_tokenizer_of(splitting)
            if splitting.whole_words == whole_words and cuts == [
                cutter.pre_tokenize_str(probe) for probe in _PROBES
            ]:
                return name
    raise DataError(
        "the tokenizer cuts text into words in none of the ways that have a name "
        f"({', '.join(SPLITTINGS)}); keep the model as a Hugging Face folder"
    )


def _has_byte_level(tree: Mapping[str, Any]) -> bool:
    decoder = tree.get("decoder") or {}
    return any(one.get("type") == "ByteLevel" for one in (decoder, *decoder.get("decoders", [])))


def _described(model: Mapping[str, Any]) -> str:
    falls_back = " that falls back to bytes" if model.get("byte_fallback") else ""
    return f"of the kind {model.get('type')}{falls_back}"
