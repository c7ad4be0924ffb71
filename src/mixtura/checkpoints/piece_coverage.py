"""Checks that pieces fill each element of a tensor exactly once.

A `Piece` pairs a part of a checkpoint's tensor ("stored") with a part of a tensor of Mixtura's
decoder ("ours"). An element that no piece fills would be uninitialised memory.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np
from torch import Tensor

from mixtura.errors import ConfigError
from mixtura.shapes.families import Piece
from mixtura.shapes.families.family import Part


def check_filled(path: object, pieces: Iterable[Piece], shapes: Mapping[str, Tensor]) -> None:
    """Raise ConfigError, naming the tensor, if the pieces do not fill every tensor of ours.

    `shapes` holds the tensors of ours by name; only their shapes are read.
    """
    by_ours: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_ours.setdefault(piece.ours, []).append(piece)
    for name, like in shapes.items():
        own = by_ours.get(name, [])
        if not own:
            raise ConfigError(
                f"{path}: the config describes {name}, for which this family stores no tensor; "
                "Mixtura cannot run this model"
            )
        if not covered_once(tuple(like.shape), [(piece.view, piece.at) for piece in own]):
            raise ConfigError(
                f"{path}: the tensors of this family do not fill {name} of shape "
                f"{tuple(like.shape)} element by element; Mixtura cannot run this model"
            )


def check_stored(pieces: Sequence[Piece]) -> None:
    """Raise ConfigError if the pieces do not fill the stored tensor.

    All pieces belong to the same stored tensor.
    """
    first = pieces[0]
    if not covered_once(first.shape, [(piece.stored_view, piece.of) for piece in pieces]):
        raise ConfigError(
            f"{first.stored}: this model's weights do not fill it element by element, as its "
            "config says; save it as another family"
        )


def covered_once(
    shape: tuple[int, ...], parts: Sequence[tuple[tuple[int, ...] | None, Part]]
) -> bool:
    """Whether the parts cover each element of a tensor of shape `shape` exactly once.

    A part is a pair: the shape of a view (None for `shape` itself), and an index into that view.
    The result is false if the parts do not all use the same view.
    """
    views = {_resolved(view, shape) for view, _ in parts}
    if len(views) != 1:
        return False
    size = views.pop()
    boxes = [_ranges(part, size) for _, part in parts]
    # `times` counts, for each cell between two cuts, the parts that cover it. Each dim is cut only
    # where a part begins or ends, so there are few cells even for a stack of many experts.
    cuts = [_cuts([box[dim] for box in boxes], length) for dim, length in enumerate(size)]
    times = np.zeros([len(cut) - 1 for cut in cuts], np.int32)
    for box in boxes:
        times[tuple(_cells(own, cut) for own, cut in zip(box, cuts, strict=True))] += 1
    return bool((times == 1).all())


def _ranges(part: Part, size: tuple[int, ...]) -> list[range]:
    """The indices that a part takes in each dim."""
    whole = [*part, *[slice(None)] * (len(size) - len(part))]
    return [
        range(*one.indices(length)) if isinstance(one, slice) else range(one, one + 1)
        for one, length in zip(whole, size, strict=True)
    ]


def _cuts(ranges: Sequence[range], length: int) -> list[int]:
    if any(own.step != 1 for own in ranges):
        return list(range(length + 1))
    return sorted({0, length, *(end for own in ranges for end in (own.start, own.stop))})


def _cells(own: range, cuts: Sequence[int]) -> slice:
    if own.step != 1:
        return slice(own.start, own.stop, own.step)
    return slice(bisect_left(cuts, own.start), bisect_left(cuts, own.stop))


def _resolved(view: tuple[int, ...] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The view's shape, with the size of a dim that is given as -1."""
    if view is None:
        return shape
    known = prod(length for length in view if length != -1)
    return tuple(prod(shape) // known if length == -1 else length for length in view)
