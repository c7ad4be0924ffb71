"""Parses JSON from untrusted files, within bounds. No other module parses such JSON.

Refused are deep nesting, integers of more than 100 digits, numbers beyond fp64, NaN and Infinity,
a key that occurs twice in one object, and half of a surrogate pair. Python's json module accepts
these inputs, or fails with an unclear error. The argument `refusal` of each function is the
subclass of MixturaError to raise; the error's message names the file.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mixtura.errors import MixturaError
from mixtura.regular_files import decoded, open_regular, read_bytes

MOST_BYTES = 16 << 20
"""the most bytes of a config file; the objects parsed from it may take twenty times as many bytes
of memory"""
MOST_BYTES_LISTED = 48 << 20
"""the most bytes of a file that lists every tensor of a model"""
DEPTH = 64
"""the most levels of nesting"""
DIGITS = 100
"""the most digits of an integer; tokenizer_config.json may contain 10^30, which means no limit"""
VALUES = 1 << 22
"""the most values in one file; a list of 150,000 tensors has half as many. Parsing so many values
takes 2 to 3 seconds"""

_SHOWN = 40
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class _BeyondBound(ValueError):
    """A value beyond a bound; `parse_json` catches it and adds the origin."""


def parse_json(
    data: bytes | str, origin: object, refusal: type[MixturaError], *, infinity: bool = False
) -> Any:
    """Parse a JSON text. An error's line begins with `origin`, such as a file's name.

    With `infinity` the word Infinity becomes {"__float__": "Infinity"}, as transformers writes it.
    """
    text = data if isinstance(data, str) else decoded(data, origin, refusal)
    # The values are counted before parsing: 48 MiB of `{},` would become 1.3 GB of objects.
    if sum(map(text.count, ",[{")) > VALUES:
        raise refusal(f"{origin}: holds more than {VALUES:,} values; no file of this kind does")
    try:
        tree = (_WITH_INFINITY if infinity else _DECODER).decode(text)
        _check_depth(tree)
        if _HALF_PAIR.search(text):
            _check_pairs(tree)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise refusal(f"{origin}: is not JSON ({where}); copy it again") from error
    except RecursionError as error:
        raise refusal(f"{origin}: {_deep()}") from error
    except _BeyondBound as error:
        raise refusal(f"{origin}: {error}") from error
    return tree


def parse_object(
    data: bytes | str, origin: object, refusal: type[MixturaError], *, infinity: bool = False
) -> dict[str, Any]:
    """Parse a JSON text that must contain one object, in the same way as `parse_json`."""
    tree = parse_json(data, origin, refusal, infinity=infinity)
    if not isinstance(tree, dict):
        raise refusal(f"{origin}: expected an object, found {tree!r:.{_SHOWN}}")
    return tree


def read_object(
    path: Path, refusal: type[MixturaError], most: int = MOST_BYTES, *, infinity: bool = False
) -> dict[str, Any]:
    """Parse a file of at most `most` bytes that must contain one JSON object.

    A missing file raises FileNotFoundError instead of `refusal`.
    """
    return parse_object(read_bytes(path, refusal, most), path, refusal, infinity=infinity)


def read_lines(path: Path, refusal: type[MixturaError]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line of a log as bytes and as the JSON object that the line contains.

    A missing file has no lines. A last line without a line break is still being written, so it is
    skipped. A line that contains no object raises `refusal` with the line's number.
    """
    try:
        opened = open_regular(path, refusal)
    except FileNotFoundError:
        return
    with opened:
        number = 0
        while (line := opened.readline(MOST_BYTES)).endswith(b"\n"):
            number += 1
            yield line, parse_object(line, f"{path}: line {number}", refusal)
        if len(line) == MOST_BYTES:
            raise refusal(
                f"{path}: line {number + 1} is longer than {MOST_BYTES:,} bytes; remove the line"
            )


def _whole_number(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise _BeyondBound(
            f"holds a number of {len(text):,} digits ({text[:8]}...), where {DIGITS} are allowed"
        )
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _BeyondBound(
            f"holds the number {text:.{_SHOWN}}, which is beyond fp64; state a smaller one"
        )
    return number


def _constant(text: str) -> NoReturn:
    raise _BeyondBound(f"holds {text}, which is no number; state one, or null")


def _infinity(text: str) -> Any:
    return {"__float__": text} if text == "Infinity" else _constant(text)


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _BeyondBound(f"has the key {twice!r:.{_SHOWN}} twice in one object; keep one of them")
    return tree


_DECODER, _WITH_INFINITY = (
    json.JSONDecoder(
        object_pairs_hook=_object,
        parse_int=_whole_number,
        parse_float=_number,
        parse_constant=constant,
    )
    for constant in (_constant, _infinity)
)


def _check_depth(tree: Any) -> None:
    """Check one level after another: a recursive check would itself fail in a deep tree."""
    level, depth = [tree], 0
    while level:
        if depth > DEPTH:
            raise _BeyondBound(_deep())
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]


def _check_pairs(tree: Any) -> None:
    try:
        json.dumps(tree, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise _BeyondBound(
            f"holds \\u{half:04x}, half of a surrogate pair, which is no character"
        ) from error


def _deep() -> str:
    return f"is nested more than {DEPTH} deep; no file of this kind is"
