"""What others wrote cannot steer a terminal, and does not fill it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.terminal_text import LINE, one_line, visible, visible_line

CODEPOINTS = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07", "␛[2J␇"),
        ("a\nb\tc", "a\nb\tc"),
        ("\x7f\x9b31m", "␡\ufffd31m"),
        # The second name would read as gpj.exe from here on.
        ("a\u202egpj", "a\ufffdgpj"),
        ("\ud800", "\ufffd"),
        ("grüße, 木 🙂", "grüße, 木 🙂"),
    ],
)
def test_visible_keeps_text_and_shows_controls(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_line_keeps_its_spaces_and_a_message_does_not() -> None:
    assert visible_line("a  b\nc\r\td") == "a  b␊c␍␉d"
    assert one_line("a  b\nc\r\td\u2028e") == "a b c d e"


def test_of_a_long_line_beginning_and_end_are_left() -> None:
    # 495 for what is left, of which 330 at the beginning.
    line = one_line("x" * 5000 + "y" * 5000)
    assert line == "x" * 330 + " ... " + "y" * 165
    assert len(line) == LINE
    assert one_line("x" * LINE) == "x" * LINE


@given(CODEPOINTS)
def test_a_line_is_one_line_that_can_be_printed(text: str) -> None:
    for line in (one_line(text), visible_line(text)):
        assert len(line) <= LINE
        assert not any(ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0 for letter in line)
        line.encode("utf-8")
    assert len(one_line(text).splitlines()) <= 1
