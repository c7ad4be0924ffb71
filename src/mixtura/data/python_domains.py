"""Divides Python source into spans of the domains code, comment, docstring, string and table.

* docstring: a statement that consists only of strings;
* comment: from `#` to the end of the line; comments on consecutive lines are one span;
* table: an outermost pair of brackets with all that they enclose, if this has at least 200
  characters and 16 literals, at least four literals for each name, and literals of at most 30
  characters on average;
* string: such a pair of brackets with literals of more than 30 characters on average, or a string
  of at least three lines that is outside such brackets;
* code: all other text, and the whole text of a file that `tokenize` cannot read.
"""

import io
import token
import tokenize
from itertools import accumulate
from typing import NamedTuple

from mixtura.data.documents import Span

_TABLE_LITERALS = 16
_TABLE_CHARACTERS = 200
_LONG_LITERAL = 30
_STRING_ROWS = 2
_OPENING = frozenset("([{")
_CLOSING = frozenset(")]}")
_CONSTANTS = frozenset({"True", "False", "None"})
_SILENT = frozenset({token.NL, token.INDENT, token.DEDENT, token.ENCODING, token.ENDMARKER})

_Place = tuple[int, int]


class _Region(NamedTuple):
    start: int
    end: int
    domain: str


def python_spans(text: str) -> list[Span]:
    """Divide the text of a Python file into spans, each of which has one domain."""
    try:
        regions = _Scanner(text).regions()
    # Inconsistent indentation raises SyntaxError.
    except (tokenize.TokenError, SyntaxError):
        return [Span(0, "code")]
    spans: list[Span] = []
    position = 0
    for start, end, domain in sorted(regions):
        between = text[position:start]
        # White space between two regions of the same domain is no code, but joins the regions.
        if between and not (spans and spans[-1].domain == domain and between.isspace()):
            spans.append(Span(position, "code"))
        if not spans or spans[-1].domain != domain:
            spans.append(Span(start, domain))
        position = end
    if position < len(text) or not spans:
        spans.append(Span(position, "code"))
    return spans


class _Scanner:
    """Collects the regions that are not code, in one pass over the tokens of a file."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Index 0 is unused, since tokenize counts rows from 1. Only "\n" ends a row.
        self.row_starts = [0, 0, *accumulate(map(len, io.StringIO(text)))]
        self.found: list[_Region] = []
        # The strings of the current logical line, and whether the line holds only strings.
        self.strings: list[_Region] = []
        self.only_strings = True
        # The number of open brackets; then the start of the outermost one, and the numbers of
        # literals, of the characters of literals, and of names after this start.
        self.depth = 0
        self.bracket_start = 0
        self.literals = 0
        self.literal_characters = 0
        self.names = 0

    def regions(self) -> list[_Region]:
        """Return the regions, without overlaps, in any order. Raises TokenError or SyntaxError."""
        handlers = {
            token.NAME: self._name,
            token.OP: self._operator,
            token.NUMBER: self._number,
            token.STRING: self._string,
            token.COMMENT: self._comment,
            token.NEWLINE: self._end_line,
            token.ERRORTOKEN: self._refuse,
        }
        for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if kind in handlers:
                handlers[kind](text, start, end)
            elif kind not in _SILENT:
                # From Python 3.12 on these tokens are the parts of an f-string.
                self.only_strings = False
        return self.found

    def _offset(self, place: _Place) -> int:
        row, column = place
        return self.row_starts[row] + column

    def _name(self, text: str, _start: _Place, _end: _Place) -> None:
        self.only_strings = False
        if text in _CONSTANTS:
            self.literals += 1
        else:
            self.names += 1

    def _number(self, text: str, _start: _Place, _end: _Place) -> None:
        self.only_strings = False
        self.literals += 1
        self.literal_characters += len(text)

    def _operator(self, text: str, start: _Place, end: _Place) -> None:
        self.only_strings = False
        if text in _OPENING:
            if self.depth == 0:
                self.bracket_start = self._offset(start)
                self.literals = self.literal_characters = self.names = 0
            self.depth += 1
        elif text in _CLOSING:
            self.depth -= 1
            if self.depth == 0:
                self._end_bracket(self._offset(end))

    def _end_bracket(self, end: int) -> None:
        start = self.bracket_start
        many = self.literals >= _TABLE_LITERALS and 4 * self.names <= self.literals
        if many and end - start >= _TABLE_CHARACTERS:
            long = self.literal_characters > _LONG_LITERAL * self.literals
            # Regions inside the brackets are part of the table.
            self.found = [region for region in self.found if region.start < start]
            self.strings = [region for region in self.strings if region.start < start]
            self.found.append(_Region(start, end, "string" if long else "table"))

    def _string(self, text: str, start: _Place, end: _Place) -> None:
        self.literals += 1
        self.literal_characters += len(text)
        prefix = text[: text.index(text[-1])].lower()
        if "f" in prefix:
            # An f-string holds code, so it is no docstring. From Python 3.12 on an f-string is
            # not a STRING token, and does not come here.
            self.only_strings = False
            return
        long = end[0] - start[0] >= _STRING_ROWS
        region = _Region(self._offset(start), self._offset(end), "string" if long else "code")
        self.strings.append(region)

    def _comment(self, _text: str, start: _Place, end: _Place) -> None:
        self.found.append(_Region(self._offset(start), self._offset(end), "comment"))

    def _end_line(self, _text: str, _start: _Place, _end: _Place) -> None:
        if self.strings and self.only_strings:
            self.found.append(_Region(self.strings[0].start, self.strings[-1].end, "docstring"))
        else:
            self.found += [region for region in self.strings if region.domain == "string"]
        self.strings = []
        self.only_strings = True

    def _refuse(self, text: str, start: _Place, _end: _Place) -> None:
        raise SyntaxError(f"{text!r} at {start}")
