"""Byte-level BPE from its parts, beside a slow twin: regular expressions, and merges one by one."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from mixtura.errors import DataError
from mixtura.tokenizers import CheckpointTokenizer, TokenFacts
from mixtura.tokenizers.byte_level import (
    SPLITTINGS,
    ByteLevelVocabulary,
    byte_level_tokenizer,
    splitting_of,
)

SPACE = "\u0120"
MERGES = [
    ("h", "e"),
    ("t", "he"),
    (SPACE, "the"),
    ("1", "2"),
    ("12", "3"),
    (SPACE, "1"),
    ("'", "s"),
    (SPACE, SPACE),
    ("\u010a", "\u010a"),
    ("\u00c3", "\u00a9"),
]
TEXT = "the the's  12345 ½ caf\u00e9 e\u0301  \n\n\t if(x==12):\r\n  return 'S'  "


def parts(splitting: str, merges: Sequence[tuple[str, str]] = MERGES) -> ByteLevelVocabulary:
    letters = sorted(ByteLevel.alphabet())
    return ByteLevelVocabulary(
        tokens=["<|endoftext|>", *letters, *("".join(merge) for merge in merges), "<think>"],
        merges=merges,
        splitting=splitting_of(splitting),
        special=["<|endoftext|>"],
        added=["<think>"],
        begin=None,
    )


def build(splitting: str) -> CheckpointTokenizer:
    return byte_level_tokenizer(parts(splitting), TokenFacts())


def letter_of_byte() -> list[str]:
    """GPT-2's: a printable Latin-1 letter is itself; the others follow from 256 on, in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def twin(splitting: str, text: str) -> list[str]:
    """Each pattern cuts what the ones before left; then the earliest merge, as long as one fits."""
    words = [text]
    for pattern in SPLITTINGS[splitting].patterns:
        words = [piece for word in words for piece in cut(pattern, word)]
    letters = letter_of_byte()
    merged: list[str] = []
    for word in words:
        pieces = [letters[byte] for byte in word.encode()]
        whole = "".join(pieces)
        if SPLITTINGS[splitting].whole_words and whole in parts(splitting).tokens:
            pieces = [whole]
        while pairs := [pair for pair in pairwise(pieces) if pair in MERGES]:
            first = min(pairs, key=MERGES.index)
            at = list(pairwise(pieces)).index(first)
            pieces[at : at + 2] = ["".join(first)]
        merged += pieces
    return merged


def cut(pattern: str, word: str) -> list[str]:
    pieces, end = [], 0
    for match in regex.finditer(pattern, word):
        pieces += [word[end : match.start()], match[0]]
        end = match.end()
    return [piece for piece in (*pieces, word[end:]) if piece]


# Latin has its letters for good, while two libraries may differ on the newest of other scripts. The
# long s is left out: a pattern that takes 'S for 's may take it too.
LETTERS = st.sampled_from("the1234 's\n\t\r.,=$é½木🙂\u3000") | st.characters(
    max_codepoint=0x24F, exclude_characters="\u017f"
)


@pytest.mark.parametrize("splitting", ["smollm", "llama-bpe", "gpt-2", "default"])
@given(text=st.text(LETTERS, max_size=30))
@example(text=TEXT)
@example(text="  12 the123 the  the\n\nthe 's")
def test_tokens_are_the_slow_twins(splitting: str, text: str) -> None:
    vocabulary = parts(splitting)
    found = [vocabulary.tokens[token] for token in TOKENIZERS[splitting].encode(text)]
    assert found == twin(splitting, text)
    assert TOKENIZERS[splitting].decode(TOKENIZERS[splitting].encode(text)) == text


TOKENIZERS = {name: build(name) for name in SPLITTINGS}


def words(splitting: str, text: str) -> list[str]:
    """The tokens' own texts; the merges above make no token of several words."""
    tokenizer = TOKENIZERS[splitting]
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def test_how_numbers_are_cut() -> None:
    # "123" is a token where nothing cuts between its digits.
    assert words("gpt-2", "12312") == ["123", "12"]
    assert words("smollm", "12312") == ["1", "2", "3", "1", "2"]
    assert words("qwen2", "12312") == ["1", "2", "3", "1", "2"]
    # In threes from the left.
    assert words("llama-bpe", "11231") == ["1", "12", "3", "1"]
    assert words("llama-bpe", "12312") == ["123", "12"]


def test_spaces_before_a_digit_stay_together_where_digits_are_cut_first() -> None:
    # GPT-2 leaves the last space to the number, whose digits merge first.
    assert words("gpt-2", "the  12") == ["the", " ", " ", "12"]
    assert words("smollm", "the  12") == ["the", "  ", "1", "2"]


def test_qwens_text_is_put_into_canonical_form() -> None:
    tokenizer = TOKENIZERS["qwen2"]
    # "e" and an accent are one letter of two bytes, which a merge makes one token.
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
    assert len(tokenizer.encode("\u00e9")) == 1
    assert TOKENIZERS["gpt-2"].decode(TOKENIZERS["gpt-2"].encode("e\u0301")) == "e\u0301"


def test_a_whole_word_is_its_token_without_merges() -> None:
    # "on" comes of no merge, but llama-bpe takes it where it stands alone.
    made = {}
    for name in ("gpt-2", "llama-bpe"):
        vocabulary = parts(name)
        extended = ByteLevelVocabulary(
            tokens=[*vocabulary.tokens, "on"],
            merges=vocabulary.merges,
            splitting=vocabulary.splitting,
            special=vocabulary.special,
            added=vocabulary.added,
            begin=None,
        )
        made[name] = len(byte_level_tokenizer(extended, TokenFacts()).encode("on"))
    assert made == {"gpt-2": 2, "llama-bpe": 1}


def test_streaming_never_shows_half_a_character() -> None:
    tokenizer = TOKENIZERS["smollm"]
    tokens = tokenizer.encode(TEXT)
    stream = tokenizer.stream()
    pieces = [*(stream.push(token) for token in tokens), stream.finish()]
    assert "".join(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)


def test_an_unknown_splitting_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match="pre-tokenizer 'smolm'; the nearest known is 'smollm'"):
        splitting_of("smolm")
    with pytest.raises(DataError, match="'tekken'; expected one of smollm, "):
        splitting_of("tekken")


def test_parts_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="the merge 'q zz' needs 'zz', which is no token"):
        byte_level_tokenizer(parts("gpt-2", [*MERGES, ("q", "zz")]), TokenFacts())
    with pytest.raises(DataError, match="the token 'he' stands twice"):
        byte_level_tokenizer(parts("gpt-2", [*MERGES, ("h", "e")]), TokenFacts())
