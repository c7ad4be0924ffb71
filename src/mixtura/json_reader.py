"""JSON of others, within bounds: the one place where the package reads any.

Refused are what the standard library reads in silence or dies of: nesting without end, numbers of
thousands of digits or beyond fp64, NaN and Infinity, a key that stands twice, half of a surrogate
pair. Each function raises `refusal`, a class of MixturaError, which names the origin.
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
"""of a config; the objects of a file may take twenty times its size"""
MOST_BYTES_LISTED = 48 << 20
"""of a file that lists every tensor of a model"""
DEPTH = 64
DIGITS = 100
"""of a whole number; tokenizer_config.json says 10^30 where it means no bound"""
VALUES = 1 << 22
"""in all; twice what lists 150,000 tensors, and so many take two or three seconds"""

_SHOWN = 40
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class _Unfit(ValueError):
    """What the bounds refuse; caught below, where the origin is known."""


def parse_json(data: bytes | str, origin: object, refusal: type[MixturaError]) -> Any:
    """The value of a JSON text; `origin` (a file's name) opens the error's line."""
    text = data if isinstance(data, str) else decoded(data, origin, refusal)
    # Of `{},` again and again, 48 MiB would become 1.3 GB of objects.
    if sum(map(text.count, ",[{")) > VALUES:
        raise refusal(f"{origin}: holds more than {VALUES:,} values; no file of this kind does")
    try:
        tree = _DECODER.decode(text)
        _check_depth(tree)
        if _HALF_PAIR.search(text):
            _check_pairs(tree)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise refusal(f"{origin}: is not JSON ({where}); copy it again") from error
    except RecursionError as error:
        raise refusal(f"{origin}: {_deep()}") from error
    except _Unfit as error:
        raise refusal(f"{origin}: {error}") from error
    return tree


def parse_object(data: bytes | str, origin: object, refusal: type[MixturaError]) -> dict[str, Any]:
    """As parse_json, of a text that holds one object."""
    tree = parse_json(data, origin, refusal)
    if not isinstance(tree, dict):
        raise refusal(f"{origin}: expected an object, found {tree!r:.{_SHOWN}}")
    return tree


def read_object(path: Path, refusal: type[MixturaError], most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a file. Raises FileNotFoundError too."""
    return parse_object(read_bytes(path, refusal, most), path, refusal)


def read_lines(path: Path, refusal: type[MixturaError]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line of a log, as it stands and as the object that it holds.

    Nothing where there is no file; a last line without its end is still being written, and left
    out. `refusal` names the line that is no object.
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
        raise _Unfit(
            f"holds a number of {len(text):,} digits ({text[:8]}...), where {DIGITS} are allowed"
        )
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Unfit(
            f"holds the number {text:.{_SHOWN}}, which is beyond fp64; state a smaller one"
        )
    return number


def _constant(text: str) -> NoReturn:
    raise _Unfit(f"holds {text}, which is no number; state one, or null")


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Unfit(f"has the key {twice!r:.{_SHOWN}} twice in one object; keep one of them")
    return tree


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_whole_number,
    parse_float=_number,
    parse_constant=_constant,
)


def _check_depth(tree: Any) -> None:
    """Level by level, as no deep tree can be gone down in."""
    level, depth = [tree], 0
    while level:
        if depth > DEPTH:
            raise _Unfit(_deep())
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
        raise _Unfit(
            f"holds \\u{half:04x}, half of a surrogate pair, which is no character"
        ) from error


def _deep() -> str:
    return f"is nested more than {DEPTH} deep; no file of this kind is"
