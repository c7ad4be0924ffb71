"""Builds a byte-level BPE tokenizer from tokens, merges, and a rule that splits text into words.

As in GPT-2, each of the 256 bytes is written as one printable character, its letter.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixtura.errors import DataError
from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer, TokenFacts
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a family of tokenizers splits text into words; merges never cross a split."""

    patterns: tuple[str, ...]
    """regular expressions, applied in turn: each cuts out its matches as separate parts, and the
    next expression splits every part further"""
    whole_words: bool = False
    """whether a word that is itself a token becomes this token without any merge"""
    canonical: bool = False
    """whether text is first normalised to Unicode's NFC"""
    begins: bool = False
    """whether every text begins with bos_token; used if the tokenizer's file does not state it"""


@dataclass(frozen=True, slots=True)
class ByteLevelVocabulary:
    """The parts of a tokenizer.

    Special and added tokens are plain text; all other tokens are in GPT-2's letters for bytes.
    """

    tokens: Sequence[str]
    merges: Sequence[tuple[str, str]]
    """pairs of tokens, in the order in which they are merged"""
    splitting: Splitting
    special: Sequence[str]
    """special tokens: no text is encoded as one of them, and decoding leaves them out"""
    added: Sequence[str]
    """tokens that are found in a text before the text is split into words"""
    begin: str | None
    """the token that every text begins with; None for none"""


def _words(digits: str) -> str:
    """Return the regular expression of a word in GPT-4 and similar tokenizers.

    `digits` is the part of the expression that matches digits.
    """
    contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    letters = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    spaces = r"\s*[\r\n]+|\s+(?!\S)|\s+"
    return f"{contractions}|{letters}|{digits}|{signs}|{spaces}"


_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MARKS = r"\p{Lm}\p{Lo}\p{M}"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# In GPT-4o a capital letter after a lower-case letter begins a new word.
_GPT4O_WORDS = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_MARKS}]*[\p{{Ll}}{_MARKS}]+{_ENDINGS}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_MARKS}]+[\p{{Ll}}{_MARKS}]*{_ENDINGS}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
_DEEPSEEK3_WORDS = (
    r"[!-/:-@\[-`{-~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = Splitting((_words(r"\p{N}{1,3}"),), whole_words=True, begins=True)
_GPT2 = Splitting((_GPT2_WORDS,))
SPLITTINGS: Mapping[str, Splitting] = {
    "smollm": Splitting((r"\p{N}", _GPT2_WORDS)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": Splitting((_words(r"\p{N}"),), canonical=True),
    "gpt-2": _GPT2,
    "olmo": _GPT2,
    "dbrx": Splitting(_LLAMA3.patterns),
    "gpt-4o": Splitting((_GPT4O_WORDS,)),
    "deepseek-v3": Splitting(
        (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3_WORDS)
    ),
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")),
}
"""each split under its name in llama.cpp, which a GGUF file states as tokenizer.ggml.pre; llama.cpp
uses `default` for a file without this key"""


def splitting_of(name: str) -> Splitting:
    """Return the split that SPLITTINGS lists under `name`. Raises DataError if it lists none."""
    if name in SPLITTINGS:
        return SPLITTINGS[name]
    near = difflib.get_close_matches(name, SPLITTINGS, n=1, cutoff=0.5)
    hint = f"the nearest known is {near[0]!r}, of" if near else "expected one of"
    raise DataError(f"pre-tokenizer {name!r}; {hint} {', '.join(SPLITTINGS)}")


def byte_level_tokenizer(vocabulary: ByteLevelVocabulary, facts: TokenFacts) -> CheckpointTokenizer:
    """Build the tokenizer. Raises DataError if a token occurs twice or if a merge needs a token
    that does not exist.
    """
    splitting = vocabulary.splitting
    token_of = _numbered(vocabulary)
    model = models.BPE(token_of, list(vocabulary.merges), ignore_merges=splitting.whole_words)
    backend = Backend(model)
    if splitting.canonical:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer_of(splitting)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, normalized=False) for token in vocabulary.special]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in vocabulary.added])
    if vocabulary.begin is not None:
        begin = (vocabulary.begin, token_of[vocabulary.begin])
        backend.post_processor = processors.TemplateProcessing(
            single=[begin[0], "$A"], special_tokens=[begin]
        )
    return CheckpointTokenizer(backend.to_str(), facts, origin="the vocabulary")


def pre_tokenizer_of(splitting: Splitting) -> pre_tokenizers.PreTokenizer:
    """Return a step that splits text into words and writes them in GPT-2's letters for bytes."""
    isolate = [pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns]
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*isolate, in_bytes])


def _numbered(vocabulary: ByteLevelVocabulary) -> dict[str, int]:
    """Map each token to its number. Raises DataError if a token occurs twice, or if a part or the
    result of a merge is not a token.
    """
    token_of = {token: number for number, token in enumerate(vocabulary.tokens)}
    if len(token_of) < len(vocabulary.tokens):
        twice = next(t for n, t in enumerate(vocabulary.tokens) if token_of[t] != n)
        raise DataError(f"the token {twice!r} stands twice among {len(vocabulary.tokens)}")
    for merge in vocabulary.merges:
        for token in (*merge, "".join(merge)):
            if token not in token_of:
                raise DataError(f"the merge {' '.join(merge)!r} needs {token!r}, which is no token")
    return token_of
