"""Makes untrusted text, such as a tensor's name, safe to print on a terminal."""

LINE = 500
"""the most characters of an error's line"""

_REPLACED = "\ufffd"
# Control characters could move the cursor, ring the bell or change the colours of the terminal.
_CONTROLS = {
    code: "\u2421" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else _REPLACED
    for code in [*range(0x20), *range(0x7F, 0xA0)]
}
# Bidirectional controls reorder the text after them, so that a name can look like another name.
_REORDERING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_HALF_PAIRS = range(0xD800, 0xE000)
_LINE_TABLE = {**_CONTROLS, **dict.fromkeys([*_REORDERING, *_HALF_PAIRS], _REPLACED)}
_TEXT_TABLE = {code: shown for code, shown in _LINE_TABLE.items() if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """Replace unsafe characters, except line breaks and tabs.

    ASCII control characters become Unicode's pictures of them. Other unsafe characters become
    U+FFFD.
    """
    return text.translate(_TEXT_TABLE)


def visible_line(text: str, most: int = LINE) -> str:
    """Replace unsafe characters, line breaks and tabs, so that the text takes one line.

    A text of more than `most` characters keeps its beginning and its end. Runs of spaces stay.
    """
    if len(text) > most:
        mark = " ... "
        begin = (most - len(mark)) * 2 // 3
        text = text[:begin] + mark + text[begin + len(mark) - most :]
    return text.translate(_LINE_TABLE)


def one_line(text: str, most: int = LINE) -> str:
    """A safe line of at most `most` characters; each run of white space becomes one space."""
    return visible_line(" ".join(text.split()), most)
