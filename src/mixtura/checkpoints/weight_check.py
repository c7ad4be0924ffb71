"""Builds the check of a checkpoint's weights against the SHA-256 digests in its folder.

The folder may have digests of all tensors (digests.json), digests of only the experts
(expert_digests.json, which older versions of Mixtura wrote), or no digests.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from mixtura.checkpoints.source import Source
from mixtura.errors import CheckpointError
from mixtura.integrity import Check, Claim
from mixtura.json_reader import MOST_BYTES_LISTED, read_object
from mixtura.shapes import ModelShape
from mixtura.shapes.families import Piece
from mixtura.tensor_files.digests import FILE, folder_claims, recorded_digests

OF_EXPERTS = "expert_digests.json"
"""a file of older versions of Mixtura, with one SHA-256 for each expert, of all its tensors"""
_EXPERTS = ".experts."
OfExpert = tuple[Piece, int | None]
"""a piece, and the index of an expert within it; the index is None if it holds only one expert"""


def check_of(source: Source, pieces: Sequence[Piece], shape: ModelShape) -> Check:
    """Build the check of all weights; the caller begins it.

    Raises CheckpointError if digests are recorded for tensors that the checkpoint does not have.
    """
    roles = shape.roles()
    own = source.own_check(roles)
    if own is not None:
        return own
    folder = source.path
    if not folder.is_dir():
        return Check(unchecked=(f"{folder}: a GGUF file carries no digests",))
    recorded = recorded_digests(folder)
    if recorded is None:
        return _check_of_experts(source, pieces)
    role_of = {piece.stored: roles.get(piece.ours) for piece in pieces}
    claims = folder_claims(folder, recorded, role_of.get)
    listed = {name for digests in recorded.values() for name in digests}
    more = [name for name in source.tensors if name not in listed]
    unchecked = (
        [f"{folder}: {len(more)} tensors without a digest, such as {more[0]}"] if more else ()
    )
    return Check(claims, partial(_remedy, FILE), unchecked)


def _remedy(file: str) -> str:
    return f"fetch the weights again, or remove {file} if they were changed on purpose"


def _check_of_experts(source: Source, pieces: Sequence[Piece]) -> Check:
    """Build the check from expert_digests.json; without that file no weight is checked."""
    path = source.path / OF_EXPERTS
    try:
        recorded = read_object(path, CheckpointError, MOST_BYTES_LISTED).get("sha256")
    except FileNotFoundError:
        return Check(unchecked=(f"{source.path}: no tensor has a digest",))
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{path}: sha256 should name a digest for each expert")
    held: dict[str, list[OfExpert]] = defaultdict(list)
    for piece in pieces:
        for name, own in _of_experts(piece):
            held[name].append(own)
    for name in recorded:
        if name not in held:
            raise CheckpointError(f"{path}: lists {name}, which the model does not have")
    claims = [
        Claim(source.path, f"expert {name}", digest, partial(_digest, source, held[name]))
        for name, digest in recorded.items()
    ]
    others = sum(_EXPERTS not in piece.ours for piece in pieces)
    unchecked = f"{source.path}: {others} tensors without a digest, as {OF_EXPERTS} is of experts"
    return Check(claims, partial(_remedy, OF_EXPERTS), (unchecked,))


def _of_experts(piece: Piece) -> Iterator[tuple[str, OfExpert]]:
    """Yield the name and the place of each expert in a piece; a piece of other weights has none."""
    layer, experts, _ = piece.ours.partition(_EXPERTS)
    if not experts:
        return
    first = piece.at[0] if piece.at else slice(None)
    if isinstance(first, int):
        yield f"{layer}{experts}{first}", (piece, None)
    else:
        for number in range((piece.stored_view or piece.shape)[0]):
            yield f"{layer}{experts}{number}", (piece, number)


def _digest(source: Source, held: Sequence[OfExpert]) -> str:
    """The SHA-256 of lines `NAME DIGEST`, one for each tensor of an expert, sorted by name."""
    import torch

    hashes: dict[str, hashlib._Hash] = {}
    for piece, number in held:
        stored = source.read(piece.stored)
        part = stored if piece.stored_view is None else stored.view(piece.stored_view)
        part = part[piece.of].mT if piece.transposed else part[piece.of]
        own = part if number is None else part[number]
        known = hashes.setdefault(piece.ours.partition(_EXPERTS)[2], hashlib.sha256())
        known.update(own.contiguous().flatten().view(torch.uint8).numpy().data)
    lines = [f"{name} {known.hexdigest()}\n" for name, known in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
