"""Merges from scores, by hand."""

from collections.abc import Sequence

import pytest

from mixtura.errors import DataError
from mixtura.tokenizers import TokenFacts
from mixtura.tokenizers.pieces import PieceKind, Pieces, byte_name, merges_of
from mixtura.tokenizers.sentencepiece_tokenizer import (
    SentencePieceTokenizer,
    sentencepiece_tokenizer,
)

MARKS = [("<unk>", 0.0, PieceKind.UNKNOWN), ("</s>", 0.0, PieceKind.CONTROL)]
Entry = tuple[str, float, PieceKind]


def pieces(
    *scored: tuple[str, float], others: Sequence[Entry] = (), fallback: bool = False
) -> Pieces:
    entries = [*MARKS, *others, *((text, score, PieceKind.NORMAL) for text, score in scored)]
    texts, scores, kinds = zip(*entries, strict=True)
    return Pieces("bpe", texts, scores, kinds, fallback)


def tokens(vocabulary: Pieces, text: str) -> list[str]:
    tokenizer = build(vocabulary)
    # The space in front is no part of what these tests say.
    return [tokenizer.token_text(token) for token in tokenizer.encode(text, continues=True)]


def build(vocabulary: Pieces) -> SentencePieceTokenizer:
    return sentencepiece_tokenizer(vocabulary, TokenFacts(ends=("</s>",)))


LETTERS = [(letter, -100.0 - ord(letter)) for letter in "abcd\u2581"]


def test_the_best_piece_is_made_first_in_every_way() -> None:
    found = merges_of(pieces(*LETTERS, ("bc", -2.0), ("ab", -1.0), ("abc", -3.0)))
    # Of "abc", which does not repeat itself, the longer beginning comes first.
    assert found == [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]


def test_of_two_ways_that_overlap_the_left_one_wins() -> None:
    # "aba" repeats itself at 2, so ("ab", "a") stands before ("a", "ba"). Of "ab", "a", "ba" the
    # left two are joined.
    vocabulary = pieces(*LETTERS, ("ab", -1.0), ("ba", -2.0), ("aba", -3.0))
    assert merges_of(vocabulary)[-2:] == [("ab", "a"), ("a", "ba")]
    assert tokens(vocabulary, "abaaba") == ["aba", "aba"]
    # From "abcab" as two ways: at 3 it repeats itself, so ("abc", "ab") stands first.
    vocabulary = pieces(*LETTERS, ("ab", -1.0), ("abc", -2.0), ("cab", -3.0), ("abcab", -4.0))
    assert merges_of(vocabulary)[-2:] == [("abc", "ab"), ("ab", "cab")]


def test_runs_of_one_score_grow_from_the_left() -> None:
    runs = [("\u2581" * length, -9.0) for length in (2, 3, 4)]
    # 1 1 1 1 1 1 -> 2 1 1 1 1 -> 3 1 1 1 -> 4 1 1 -> 4 2.
    assert list(map(len, tokens(pieces(*LETTERS, *runs), " " * 6))) == [4, 2]


def test_scores_that_leave_the_order_open_are_refused() -> None:
    with pytest.raises(DataError, match="'ab' and 'bc' have the same score"):
        merges_of(pieces(*LETTERS, ("ab", -1.0), ("bc", -1.0)))


def test_what_no_text_becomes_is_never_joined() -> None:
    others = [("ab", 0.0, PieceKind.CONTROL), ("cd", 0.0, PieceKind.USER_DEFINED)]
    vocabulary = pieces(*LETTERS, others=others)
    assert merges_of(vocabulary) == []
    assert tokens(vocabulary, "abcd") == ["a", "b", "cd"]
    assert build(vocabulary).encode_with_marks("ab")[-1] == 2
    with pytest.raises(DataError, match="joins through the unused piece 'ab'"):
        merges_of(pieces(*LETTERS, others=[("ab", 0.0, PieceKind.UNUSED)]))


def test_bytes_stand_for_what_is_no_piece() -> None:
    others = [(byte_name(byte), 0.0, PieceKind.BYTE) for byte in range(256)]
    vocabulary = pieces(*LETTERS, others=others, fallback=True)
    # "é" is 0xC3 0xA9.
    assert tokens(vocabulary, "aé") == ["a", "<0xC3>", "<0xA9>"]
    assert build(vocabulary).decode(build(vocabulary).encode("aé")) == "aé"
    # Of two bytes that begin a character and one that is none, each is shown.
    number = vocabulary.texts.index
    broken = [number(byte_name(byte)) for byte in (0xF0, 0x9F, 0x61)]
    assert build(vocabulary).decode(broken) == "\ufffd\ufffda"


@pytest.mark.parametrize(
    ("scored", "problem"),
    [
        ([("", -1.0)], "piece 2 has 0 characters"),
        ([("a" * 600, -1.0)], "piece 2 has 600 characters"),
        ([("a", float("nan"))], "'a', has the score nan"),
        ([("a", -1.0), ("a", -2.0)], "the piece 'a' stands twice among 4"),
    ],
)
def test_pieces_that_cannot_serve_are_named(scored: list[tuple[str, float]], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        pieces(*scored)


def test_parts_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="1 scores for 2 pieces"):
        Pieces("bpe", ["a", "b"], [0.0], [1, 1], byte_fallback=False)
    with pytest.raises(DataError, match="'b', is of the unknown kind 9"):
        Pieces("bpe", ["a", "b"], [0.0, 0.0], [1, 9], byte_fallback=False)
    with pytest.raises(DataError, match="has no byte piece <0x00>"):
        Pieces("bpe", ["a"], [0.0], [1], byte_fallback=True)
