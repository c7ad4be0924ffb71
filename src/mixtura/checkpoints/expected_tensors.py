"""Checks that a checkpoint holds every tensor that its config describes, and no other."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from mixtura.checkpoints.source import Source
from mixtura.errors import CheckpointError
from mixtura.shapes.families import Family, Piece

_SHOWN = 4
_MOST_MISSING = 1000


def check_tensors(
    source: Source, family: Family, pieces: Iterable[Piece], *, values: bool = True
) -> dict[str, str]:
    """Raise CheckpointError for missing, misshapen and unexpected tensors; the message names them.

    Returns a description of each stored tensor that the model does not use, by the tensor's name.
    If a checkpoint stores one tensor under two names, such as a tied head, the two copies are
    compared, unless `values` is false.
    """
    expected: dict[str, tuple[int, ...]] = {}
    missing: dict[str, None] = {}
    ours: dict[str, str] = {}
    for piece in pieces:
        expected[piece.stored], ours[piece.stored] = piece.shape, piece.ours
        if piece.stored not in source.tensors:
            missing[piece.stored] = None
            # A damaged config may describe billions of layers: do not list all their tensors.
            if len(missing) > _MOST_MISSING:
                break
    if missing:
        raise CheckpointError(
            f"{source.path}: {_listed(list(missing))} missing; the config of this "
            f"{family.model_type} model describes more than the files hold"
        )
    for name, shape in expected.items():
        if source.tensors[name].shape != shape:
            raise CheckpointError(
                f"{source.path}: {name} is of shape {source.tensors[name].shape} where the config "
                f"says {shape}; config and weights are of different models"
            )
    spare = [name for name in source.tensors if name not in expected]
    left_out = {
        name: word
        for name in spare
        for pattern, word in family.left_out.items()
        if re.fullmatch(pattern, name)
    }
    for name, of in family.copies(ours).items():
        if name in spare:
            if values:
                _check_copy(source, name, of)
            left_out[name] = f"{of} once more"
    left_out |= _without_effect(source, sorted(set(spare) - set(left_out)))
    unexpected = sorted(set(spare) - set(left_out))
    if unexpected:
        raise CheckpointError(
            f"{source.path}: {_listed(unexpected)} unexpected; no part of a {family.model_type} "
            "model of this config has a place for them"
        )
    return left_out


def _without_effect(source: Source, names: Iterable[str]) -> dict[str, str]:
    """The named tensors that have no effect, such as a bias of zeros, with a description."""
    found = {name: source.without_effect(name) for name in names}
    return {name: word for name, word in found.items() if word is not None}


def _check_copy(source: Source, name: str, of: str) -> None:
    own, other = source.read(name), source.read(of)
    if own.dtype != other.dtype or not own.equal(other):
        raise CheckpointError(
            f"{source.path}: {name} differs from {of}, and tie_word_embeddings=true makes the two "
            "one; set it to false in config.json, or take out the tensor that is not meant"
        )


def described(left_out: Mapping[str, str]) -> list[str]:
    """A line for each description in `left_out`: how many tensors have it, and the name of one."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, word in left_out.items():
        names[word].append(name)
    return [
        f"{len(found)} tensors left out, such as {found[0]}: {word}"
        for word, found in names.items()
    ]


def _listed(names: list[str]) -> str:
    least = "at least " if len(names) > _MOST_MISSING else ""
    more = f" and {least}{len(names) - _SHOWN} more are" if len(names) > _SHOWN else ""
    verb = "" if more else (" is" if len(names) == 1 else " are")
    return ", ".join(names[:_SHOWN]) + (more or verb)
