"""Text that others wrote, such as a tensor's name, as a terminal may show it."""

LINE = 500
"""characters of one line about a mistake"""

# They would move the cursor, ring, or recolour everything; a line break and a tab do no harm.
_CONTROLS = {
    code: "\u2421" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else "\ufffd"
    for code in [*range(0x20), *range(0x7F, 0xA0)]
    if chr(code) not in "\n\t"
}
# They would show the text behind them in another order, so that a name reads as another one.
_REORDERING = dict.fromkeys([*range(8234, 8239), *range(8294, 8298)], "�")
_SURROGATES = dict.fromkeys(range(55296, 57344), "�")
_TABLE = {**_CONTROLS, **_REORDERING, **_SURROGATES}


def visible(text: str) -> str:
    """The text with control characters as their pictures; lines stay lines."""
    return text.translate(_TABLE)


def one_line(text: str, most: int = LINE) -> str:
    """The text in one line; of a longer one than `most`, the beginning and the end."""
    if len(text) > 8 * most:
        # White space may still go from either half; a message of megabytes is not gone through.
        text = f"{text[: 4 * most]} {text[-4 * most :]}"
    line = visible(" ".join(text.split()))
    if len(line) <= most:
        return line
    mark = " ... "
    begin = (most - len(mark)) * 2 // 3
    return line[:begin] + mark + line[begin + len(mark) - most :]
