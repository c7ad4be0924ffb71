"""The domains inside Python source: code, comment, docstring, string and table.

* docstring: a statement that is nothing but a string;
* comment: from `#` to the end of the line, with lines that follow each other as one;
* table: brackets that hold mostly short literals, sixteen or more, over two hundred characters;
* string: a literal of three lines or more elsewhere, or brackets that hold mostly long ones;
* code: all the rest, and the whole of a file that `tokenize` cannot read.
"""

import io
import token
import tokenize
from itertools import accumulate
from typing import NamedTuple

from mixtura.data.documents import Span

PYTHON_DOMAINS = ("code", "comment", "docstring", "string", "table")

_TABLE_LITERALS = 16
_TABLE_CHARACTERS = 200
_LONG_LITERAL = 30
_STRING_ROWS = 2
_CONSTANTS = frozenset({"True", "False", "None"})
_SILENT = frozenset({token.NL, token.INDENT, token.DEDENT, token.ENCODING, token.ENDMARKER})


class _Region(NamedTuple):
    start: int
    end: int
    domain: str


def python_spans(text: str) -> list[Span]:
    """The domains of a Python file, as spans of characters."""
    try:
        regions = _Scanner(text).regions()
    # A SyntaxError also where indentation is inconsistent.
    except (tokenize.TokenError, SyntaxError):
        return [Span(0, "code")]
    spans: list[Span] = []
    position = 0
    for start, end, domain in sorted(regions):
        between = text[position:start]
        # Blank lines and indentation between two comments belong to neither.
        if between and not (spans and spans[-1].domain == domain and between.isspace()):
            spans.append(Span(position, "code"))
        if not spans or spans[-1].domain != domain:
            spans.append(Span(start, domain))
        position = end
    if position < len(text) or not spans:
        spans.append(Span(position, "code"))
    return spans


class _Scanner:
    """One pass over the tokens of a file, collecting the regions that are not code."""

    def __init__(self, text: str) -> None:
        self.text = text
        # tokenize counts rows from 1, and only "\n" ends one.
        self.row_starts = [0, 0, *accumulate(map(len, io.StringIO(text)))]
        self.found: list[_Region] = []
        # Of the logical line at hand: its strings, and whether it holds anything else.
        self.strings: list[_Region] = []
        self.only_strings = True
        # Of the outermost bracket at hand.
        self.depth = 0
        self.bracket_start = 0
        self.literals = 0
        self.literal_characters = 0
        self.names = 0

    def regions(self) -> list[_Region]:
        """Regions that do not overlap, in no order. Raises TokenError or SyntaxError."""
        for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if kind == token.NAME:
                self.only_strings = False
                self.names += text not in _CONSTANTS
                self.literals += text in _CONSTANTS
            elif kind == token.OP:
                self.only_strings = False
                if text in "([{":
                    self._open(self._offset(start))
                elif text in ")]}":
                    self._close(self._offset(end))
            elif kind == token.STRING:
                self._string(text, start, end)
            elif kind == token.NUMBER:
                self.only_strings = False
                self.literals += 1
                self.literal_characters += len(text)
            elif kind == token.COMMENT:
                self.found.append(_Region(self._offset(start), self._offset(end), "comment"))
            elif kind == token.NEWLINE:
                self._end_line()
            elif kind == token.ERRORTOKEN:
                raise SyntaxError(text)
            elif kind not in _SILENT:
                # The parts of an f-string, from Python 3.12 on.
                self.only_strings = False
        return self.found

    def _offset(self, place: tuple[int, int]) -> int:
        row, column = place
        return self.row_starts[row] + column

    def _open(self, start: int) -> None:
        if self.depth == 0:
            self.bracket_start = start
            self.literals = self.literal_characters = self.names = 0
        self.depth += 1

    def _close(self, end: int) -> None:
        self.depth -= 1
        start = self.bracket_start
        many = self.literals >= _TABLE_LITERALS and 4 * self.names <= self.literals
        if self.depth == 0 and many and end - start >= _TABLE_CHARACTERS:
            long = self.literal_characters > _LONG_LITERAL * self.literals
            # What was found inside the brackets is part of the table.
            self.found = [region for region in self.found if region.start < start]
            self.strings = [region for region in self.strings if region.start < start]
            self.found.append(_Region(start, end, "string" if long else "table"))

    def _string(self, text: str, start: tuple[int, int], end: tuple[int, int]) -> None:
        self.literals += 1
        self.literal_characters += len(text)
        prefix = text[: text.index(text[-1])].lower()
        if "f" in prefix:
            # An f-string holds code; from Python 3.12 on it is no STRING at all.
            self.only_strings = False
            return
        long = end[0] - start[0] >= _STRING_ROWS
        region = _Region(self._offset(start), self._offset(end), "string" if long else "code")
        self.strings.append(region)

    def _end_line(self) -> None:
        if self.strings and self.only_strings:
            self.found.append(_Region(self.strings[0].start, self.strings[-1].end, "docstring"))
        else:
            self.found += [region for region in self.strings if region.domain == "string"]
        self.strings = []
        self.only_strings = True
