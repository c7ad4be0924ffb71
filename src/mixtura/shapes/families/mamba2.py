"""Converts Mamba-2's config keys and tensor names, for all families that have Mamba-2 layers."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from mixtura.config import Tree
from mixtura.errors import ConfigError
from mixtura.shapes.families.family import Piece
from mixtura.shapes.families.keys import Keys
from mixtura.shapes.recurrence import Mamba2Shape

_INFINITY = {"__float__": "Infinity"}


def read_step_bounds(keys: Keys) -> Tree:
    """The bounds of a step, from `time_step_limit`; an infinite upper bound becomes None."""
    limit = keys.given("time_step_limit", (0.0, inf))
    bounds = [inf if bound == _INFINITY else bound for bound in limit] if _is_pair(limit) else []
    if not bounds or not all(isinstance(bound, int | float) for bound in bounds):
        raise ConfigError(
            f"config.json: time_step_limit={limit!r:.60} should be the least and the most step"
        )
    least, most = bounds
    return {"least_step": least, "most_step": None if most == inf else most}


def write_step_bounds(recurrence: Mapping[str, Any]) -> Tree:
    """The reverse of `read_step_bounds`; empty if steps have no bounds."""
    least, most = recurrence["least_step"], recurrence["most_step"]
    if most is None:
        return {"time_step_limit": [least, _INFINITY]} if least else {}
    return {"time_step_limit": [least, most]}


def mamba2_pieces(width: int, mixer: Mamba2Shape, stored: str, ours: str) -> Iterator[Piece]:
    """The pieces of one mixer.

    The stored in_proj has the rows of gate, inputs, b, c and steps. Mixtura's `steps` has the rows
    of the steps, and `projection` has all other rows.
    """
    packed = mixer.inner + mixer.channels
    every = packed + mixer.heads
    parts = {"projection": slice(0, packed), "steps": slice(packed, every)}
    for name, rows in parts.items():
        size = (every, width)
        yield Piece(f"{stored}in_proj.weight", size, f"{ours}{name}.weight", of=(rows,))
        if mixer.bias:
            yield Piece(f"{stored}in_proj.bias", (every,), f"{ours}{name}.bias", of=(rows,))
    conv = (mixer.channels, 1, mixer.kernel)
    yield Piece(f"{stored}conv1d.weight", conv, f"{ours}conv.weight", view=conv)
    if mixer.conv_bias:
        yield Piece(f"{stored}conv1d.bias", (mixer.channels,), f"{ours}conv.bias")
    for theirs, own in {"A_log": "rate_log", "dt_bias": "step_bias", "D": "skip"}.items():
        yield Piece(f"{stored}{theirs}", (mixer.heads,), f"{ours}{own}")
    yield Piece(f"{stored}norm.weight", (mixer.inner,), f"{ours}norm.weight")
    yield Piece(f"{stored}out_proj.weight", (width, mixer.inner), f"{ours}out.weight")
    if mixer.bias:
        yield Piece(f"{stored}out_proj.bias", (width,), f"{ours}out.bias")


def _is_pair(limit: Any) -> bool:
    return isinstance(limit, list | tuple) and len(limit) == 2
