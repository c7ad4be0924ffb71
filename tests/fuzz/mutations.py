"""Ways to spoil bytes and trees of plain data, each chosen by a `Random` alone."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

Path = tuple[str | int, ...]

ESCAPES = "\x1b[2J\x1b]0;title\x07\u202ename\n\rnext"
_SIZES = [0, 1, 2, 3, 7, 8, 31, 32, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1]
_ODD: list[Any] = [
    *(None, True, False, "", "x", ESCAPES, "../../x", "/dev/zero", "\ud800", "x" * 10_000, [], {}),
    *(0, 1, -1, 2, 3, 17, 100_000, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *([None], [0], [[]], {"": None}, {"a": {"b": 1}}, ["x"] * 1000, list(range(1000))),
]


class Raw:
    """A piece of text that stands in the file as it is: what no dump would write."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __deepcopy__(self, _: object) -> "Raw":
        return self


def _raw(rng: Random) -> Raw:
    depth = rng.choice([50, 200, 1000, 100_000])
    return Raw(
        rng.choice(
            [
                "[" * depth + "]" * depth,
                '{"a":' * depth + "1" + "}" * depth,
                "[" * depth,
                "9" * rng.choice([20, 400, 5000, 100_000]),
                "1e400",
                "-1e999",
                "NaN",
                "-Infinity",
                '{"a":1,"a":2}',
                '"\\ud800"',
                '"\\u0000\\u001b[31m"',
                "{",
                "nul",
                "'",
                "0x10",
                "01",
                "1.",
                "/* */ 1",
            ]
        )
    )


def spoilt_bytes(rng: Random, data: bytes, most: int = 4) -> bytes:
    """One to `most` changes: bits, runs, numbers of 4 and 8 bytes, cuts, copies, insertions."""
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(spoilt) + 1)
        size = rng.choice([1, 1, 2, 4, 8, 64, 1000])
        match rng.randrange(8):
            case 0 if at < len(spoilt):
                spoilt[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(spoilt):
                spoilt[at] = rng.choice([0, 1, 9, 10, 13, 27, 34, 0x7F, 0x80, 0xC0, 0xFE, 0xFF])
            case 2:
                spoilt[at : at + size] = rng.randbytes(size)
            case 3:
                width = rng.choice([4, 8])
                number = rng.choice(_SIZES) % 2 ** (8 * width)
                spoilt[at : at + width] = number.to_bytes(width, "little")
            case 4:
                del spoilt[at : at + size]
            case 5:
                del spoilt[at:]
            case 6:
                begin = rng.randrange(len(spoilt) + 1)
                spoilt[at:at] = spoilt[begin : begin + size]
            case _:
                spoilt[at:at] = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)])
    return bytes(spoilt)


def spoilt_tree(rng: Random, tree: Any, most: int = 3, odd: Callable[[Random], Any] | None = None):
    """A copy of plain data with one to `most` changes; `odd` draws values that suit the kind."""
    spoilt = deepcopy(tree)
    for _ in range(rng.choice([1] * 4 + list(range(1, most + 1)))):
        spoilt = _changed(rng, spoilt, odd or odd_value)
    return spoilt


def odd_value(rng: Random) -> Any:
    """What belongs nowhere: other types, bounds of integers, deep and long things, raw text."""
    return _raw(rng) if rng.randrange(8) == 0 else deepcopy(rng.choice(_ODD))


def near(rng: Random, value: Any) -> Any:
    """What could nearly stand there instead."""
    match value:
        case bool():
            return not value
        case int():
            factor = rng.choice([2, 3, 10, 1000, 10**6, 10**9])
            return rng.choice([value + 1, value - 1, -value, value * factor, value // 2, 0, 1])
        case float():
            return rng.choice([-value, value * 1e10, value + 1, 0.0, value * 1e300])
        case str():
            cut = rng.randrange(len(value) + 1)
            return rng.choice(
                [value + "x", value[:cut], value.upper(), value + ESCAPES, value * 50]
            )
        case list() if value:
            at = rng.randrange(len(value))
            return rng.choice(
                [value[:at], value + value, value[::-1], [value], [*value[:at], None]]
            )
        case dict() if value:
            key = rng.choice(list(value))
            return rng.choice([{**value, key + "x": 1}, {key: value[key]}, [value], list(value)])
    return odd_value(rng)


def json_text(tree: Any, rng: Random | None = None) -> str:
    """As JSON, raw pieces as they are; with `rng`, now and then with a key twice."""
    pieces: list[str] = []
    text = json.dumps(_marked(tree, pieces))
    for number, piece in enumerate(pieces):
        text = text.replace(f'"\\u0001{number}\\u0001"', piece)
    if rng is not None and rng.randrange(20) == 0 and '{"' in text:
        at = text.index('{"', rng.randrange(text.rindex('{"') + 1))
        text = f"{text[: at + 1]}{text[at + 1 : text.index(':', at)]}: 1, {text[at + 1 :]}"
    return text


def paths(tree: Any, here: Path = ()) -> Iterator[Path]:
    """Where anything stands, the whole first."""
    yield here
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if _is_list(tree) else ()
    for key, value in inner:
        yield from paths(value, (*here, key))


def _changed(rng: Random, tree: Any, odd: Callable[[Random], Any]) -> Any:
    # The outermost value once in a while only: little is read behind it.
    places = list(paths(tree))
    path = rng.choice(places[1:] or places)
    if len(places) == 1 or rng.randrange(60) == 0:
        return odd(rng)
    *above, key = path
    parent = tree
    for step in above:
        parent = parent[step]
    match rng.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[near(rng, str(key)) if rng.randrange(2) else ESCAPES] = parent[key]
        case 2 if isinstance(parent, dict):
            other = rng.choice(list(parent))
            parent[key] = deepcopy(parent[other])
        case 3 | 4 | 5:
            parent[key] = near(rng, parent[key])
        case _:
            parent[key] = odd(rng)
    return tree


def _marked(tree: Any, pieces: list[str]) -> Any:
    """The tree with each raw piece as a string that stands nowhere else."""
    match tree:
        case Raw():
            pieces.append(tree.text)
            return f"\x01{len(pieces) - 1}\x01"
        case dict():
            return {key: _marked(value, pieces) for key, value in tree.items()}
        case list() | tuple():
            return [_marked(value, pieces) for value in tree]
    return tree


def _is_list(tree: Any) -> bool:
    return isinstance(tree, list) and len(tree) < 5000
