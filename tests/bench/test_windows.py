"""Windows of text: how many, of what, and what they leave out."""

import pytest

from mixtura.bench.windows import windows
from mixtura.data import Document, Skipped
from mixtura.errors import DataError
from mixtura.tokenizers import ByteTokenizer


class BeginsWithNine(ByteTokenizer):
    begin = (9,)


def documents(*texts: str) -> list[Document | Skipped]:
    return [Document(f"{number}.txt", "", text) for number, text in enumerate(texts)]


def test_what_is_left_behind_the_last_whole_window_is_left_out() -> None:
    # 10 bytes give two windows of 4 and leave 2; each predicts its last 3.
    found = windows(documents("abcdefghij"), ByteTokenizer(), 4, 100)
    assert found.token_WS.tolist() == [list(b"abcd"), list(b"efgh")]
    assert (found.predicted, found.predicted_bytes) == (6, 6)


def test_each_window_begins_as_every_text_does() -> None:
    # Of 4 tokens one is the beginning, which adds no byte; so 3 bytes of text a window, and all of
    # them are predicted.
    found = windows(documents("abcdefg"), BeginsWithNine(), 4, 100)
    assert found.token_WS.tolist() == [[9, *b"abc"], [9, *b"def"]]
    assert found.bytes_WS.tolist() == [[0, 1, 1, 1]] * 2
    assert (found.predicted, found.predicted_bytes) == (6, 6)


def test_a_long_document_gives_eight_windows_and_the_tokens_asked_for_end_it() -> None:
    long = documents("x" * 1000)
    assert len(windows(long, ByteTokenizer(), 10, 1000).token_WS) == 8
    # 25 tokens are reached by the third window of 10.
    assert len(windows(long, ByteTokenizer(), 10, 25).token_WS) == 3


def test_documents_come_in_an_order_of_their_names() -> None:
    texts = documents(*("abcdefgh"[number] * 4 for number in range(8)))
    found = windows(texts, ByteTokenizer(), 4, 1000).token_WS[:, 0].tolist()
    again = windows(reversed(texts), ByteTokenizer(), 4, 1000).token_WS[:, 0].tolist()
    assert found == again
    assert found != sorted(found)
    assert sorted(found) == list(b"abcdefgh")


def test_text_that_fills_no_window_is_refused() -> None:
    given = [*documents("ab", "abc"), Skipped("z", "unreadable")]
    with pytest.raises(DataError, match="none of 2 documents has the 4 tokens"):
        windows(given, ByteTokenizer(), 4, 100)
