"""Text that others wrote, such as a tensor's name, as a terminal may show it."""

LINE = 500
"""characters of one line about a mistake"""

_REPLACED = "\ufffd"
# They would move the cursor, ring, or recolour everything.
_CONTROLS = {
    code: "\u2421" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else _REPLACED
    for code in [*range(0x20), *range(0x7F, 0xA0)]
}
# They would show what stands behind them in another order, so that a name reads as another one.
_REORDERING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_HALF_PAIRS = range(0xD800, 0xE000)
_OF_A_LINE = {**_CONTROLS, **dict.fromkeys([*_REORDERING, *_HALF_PAIRS], _REPLACED)}
_OF_LINES = {code: shown for code, shown in _OF_A_LINE.items() if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """The text with control characters as their pictures; line breaks and tabs stay."""
    return text.translate(_OF_LINES)


def visible_line(text: str, most: int = LINE) -> str:
    """The text in one line of at most `most` characters, its spaces as they are.

    A line break is shown as its picture too; of a longer text the beginning and the end are left.
    """
    if len(text) > most:
        mark = " ... "
        begin = (most - len(mark)) * 2 // 3
        text = text[:begin] + mark + text[begin + len(mark) - most :]
    return text.translate(_OF_A_LINE)


def one_line(text: str, most: int = LINE) -> str:
    """A message in one line, each run of white space as one space."""
    return visible_line(" ".join(text.split()), most)
