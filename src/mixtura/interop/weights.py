"""Tensors of a checkpoint into our decoder's, piece by piece, each accounted for."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import groupby

import torch
from torch import Tensor

from mixtura.errors import CheckpointError
from mixtura.interop.patchwork import FilePart, Patchwork
from mixtura.interop.source import Source
from mixtura.shapes.families import Family, Piece

_SHOWN = 4
_MOST_MISSING = 1000


def check_tensors(source: Source, family: Family, pieces: Iterable[Piece]) -> dict[str, str]:
    """Raises CheckpointError for missing, misshapen and unexpected tensors, by name.

    Gives the names of those that the family knows and leaves out, and what they are.
    """
    expected: dict[str, tuple[int, ...]] = {}
    missing: dict[str, None] = {}
    for piece in pieces:
        expected[piece.stored] = piece.shape
        if piece.stored not in source.tensors:
            missing[piece.stored] = None
            # A config may ask for any number of layers and experts; its files are finite.
            if len(missing) > _MOST_MISSING:
                break
    if missing:
        raise CheckpointError(
            f"{source.path}: {_listed(list(missing))} missing; the config of this "
            f"{family.model_type} model asks for more than the files hold"
        )
    for name, shape in expected.items():
        if source.tensors[name].shape != shape:
            raise CheckpointError(
                f"{source.path}: {name} is of shape {source.tensors[name].shape} where the config "
                f"asks for {shape}; config and weights are of different models"
            )
    spare = [name for name in source.tensors if name not in expected]
    left_out = {
        name: word
        for name in spare
        for pattern, word in family.left_out.items()
        if re.fullmatch(pattern, name)
    }
    unexpected = sorted(set(spare) - set(left_out))
    if unexpected:
        raise CheckpointError(
            f"{source.path}: {_listed(unexpected)} unexpected; no part of a {family.model_type} "
            "model of this config has a place for them"
        )
    return left_out


def described(left_out: Mapping[str, str]) -> list[str]:
    """A line for each reason why tensors are left out, with how many and one of them."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, word in left_out.items():
        names[word].append(name)
    return [
        f"{len(found)} tensors left out, such as {found[0]}: {word}"
        for word, found in names.items()
    ]


def read_weights(
    source: Source,
    pieces: Iterable[Piece],
    shapes: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Our tensors by name, for a model whose own (on meta) are `shapes`.

    A tensor that is stored as ours is, is a view of the file; others are put together. With no
    `dtype`, the one that the parameters are stored in; raises CheckpointError where they differ.
    """
    by_ours: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_ours[piece.ours].append(piece)
    stored = dtype or common_dtype(source, by_ours, shapes)
    patchwork = Patchwork()
    return {
        name: _assembled(
            source,
            by_ours[name],
            like,
            stored if _is_weight(like) else like.dtype,
            patchwork,
        )
        for name, like in shapes.items()
    }


def common_dtype(
    source: Source, by_ours: Mapping[str, list[Piece]], shapes: Mapping[str, Tensor]
) -> torch.dtype:
    """The dtype of every parameter. Raises CheckpointError naming two that differ."""
    first: tuple[str, torch.dtype] | None = None
    for name, pieces in by_ours.items():
        if not _is_weight(shapes[name]):
            continue
        for piece in pieces:
            found = source.dtype_of(piece.stored)
            if first is None:
                first = (piece.stored, found)
            if found != first[1]:
                raise CheckpointError(
                    f"{source.path}: {first[0]} is stored in {_named(first[1])} and {piece.stored} "
                    f"in {_named(found)}; say which to compute in with a dtype"
                )
    assert first is not None, "every model has weights"
    return first[1]


def _is_weight(tensor: Tensor) -> bool:
    """Buffers, such as a choosing bias, keep their own dtype."""
    return isinstance(tensor, torch.nn.Parameter)


def _assembled(
    source: Source,
    pieces: list[Piece],
    like: Tensor,
    dtype: torch.dtype,
    patchwork: Patchwork,
) -> Tensor:
    if len(pieces) == 1 and is_whole(pieces[0]):
        return source.read(pieces[0].stored).view(like.shape).to(dtype)
    parts = _file_parts(source, pieces, like, dtype)
    if parts:
        return patchwork.tensor(tuple(like.shape), dtype, parts)
    whole = torch.empty(like.shape, dtype=dtype)
    for name, parts in groupby(pieces, lambda piece: piece.stored):
        # Once for all its parts: a packed tensor is unpacked at each reading.
        stored = source.read(name)
        for piece in parts:
            target, part = taken(whole, stored, piece)
            target.copy_(part)
    return whole


def _file_parts(
    source: Source, pieces: list[Piece], like: Tensor, dtype: torch.dtype
) -> list[FilePart]:
    """Where in files ours lies, part by part; nothing where it has to be turned or converted."""
    parts: list[FilePart] = []
    for piece in pieces:
        place = source.place_of(piece.stored)
        if (
            place is None
            or piece.of
            or piece.view
            or piece.transposed
            or source.dtype_of(piece.stored) != dtype
        ):
            return []
        target = like[piece.at]
        if not target.is_contiguous():
            return []
        size = target.numel() * dtype.itemsize
        parts.append(
            FilePart(place.file, place.offset, size, int(target.storage_offset()) * dtype.itemsize)
        )
    return parts


def is_whole(piece: Piece) -> bool:
    """Whether the two tensors are one, element by element."""
    return not piece.at and not piece.of and not piece.transposed


def taken(whole: Tensor, stored: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
    """Views of one shape: the part of ours, and the part of the stored tensor that fills it."""
    target = whole if piece.view is None else whole.view(piece.view)
    part = stored if piece.stored_view is None else stored.view(piece.stored_view)
    target, part = target[piece.at], part[piece.of]
    return target, part.mT if piece.transposed else part


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(names: list[str]) -> str:
    least = "at least " if len(names) > _MOST_MISSING else ""
    more = f" and {least}{len(names) - _SHOWN} more are" if len(names) > _SHOWN else ""
    verb = "" if more else (" is" if len(names) == 1 else " are")
    return ", ".join(names[:_SHOWN]) + (more or verb)
