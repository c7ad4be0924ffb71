"""Untrusted text, such as a tensor's name, in a form that a terminal may print."""

LINE = 500
"""characters of an error's line"""

_REPLACED = "\ufffd"
# Control characters would move the cursor, ring the bell, or change all colours.
_CONTROLS = {
    code: "\u2421" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else _REPLACED
    for code in [*range(0x20), *range(0x7F, 0xA0)]
}
# Bidirectional controls reorder the text behind them, so that one name reads as another.
_REORDERING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_HALF_PAIRS = range(0xD800, 0xE000)
_LINE_TABLE = {**_CONTROLS, **dict.fromkeys([*_REORDERING, *_HALF_PAIRS], _REPLACED)}
_TEXT_TABLE = {code: shown for code, shown in _LINE_TABLE.items() if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """The text with control characters as their pictures; line breaks and tabs stay."""
    return text.translate(_TEXT_TABLE)


def visible_line(text: str, most: int = LINE) -> str:
    """The text in one line of at most `most` characters; runs of spaces stay.

    A line break becomes its picture too. A longer text keeps its beginning and its end.
    """
    if len(text) > most:
        mark = " ... "
        begin = (most - len(mark)) * 2 // 3
        text = text[:begin] + mark + text[begin + len(mark) - most :]
    return text.translate(_LINE_TABLE)


def one_line(text: str, most: int = LINE) -> str:
    """A message in one line, each run of white space as one space."""
    return visible_line(" ".join(text.split()), most)
