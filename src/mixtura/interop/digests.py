"""A digest for each expert, so that none is lost, doubled or swapped between saving and loading."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mixtura.errors import CheckpointError
from mixtura.interop.hf_folder import read_json
from mixtura.shapes.families import Piece

FILE = "expert_digests.json"
_EXPERTS = ".experts."


class ExpertDigests:
    """SHA-256 of each expert: of the digests of its tensors as stored, by our names for them."""

    def __init__(self) -> None:
        self._hashes: dict[str, dict[str, hashlib._Hash]] = {}

    def add(self, piece: Piece, part: Tensor) -> None:
        """`part` as it is stored, seen as the part of ours that it fills."""
        for expert, own in _of_experts(piece, part):
            layer, _, tensor = piece.ours.partition(_EXPERTS)
            tensors = self._hashes.setdefault(f"{layer}{_EXPERTS}{expert}", {})
            known = tensors.setdefault(tensor, hashlib.sha256())
            known.update(own.contiguous().flatten().view(torch.uint8).numpy().data)

    def found(self) -> dict[str, str]:
        return {name: _combined(tensors) for name, tensors in self._hashes.items()}


def check_digests(folder: Path, found: Mapping[str, str], recorded: Mapping[str, str]) -> None:
    """Raises CheckpointError naming an expert that is not the one that was saved."""
    known = {digest: name for name, digest in recorded.items()}
    for name, digest in recorded.items():
        if name not in found:
            raise CheckpointError(f"{folder / FILE}: lists {name}, which the model does not have")
        if found[name] != digest:
            held = known.get(found[name])
            what = f"holds what was saved as {held}" if held else "is not what was saved"
            raise CheckpointError(
                f"{folder}: expert {name} {what} (its digest differs); fetch the weights again, or "
                f"remove {FILE} if they were changed on purpose"
            )


def recorded_digests(folder: Path) -> Mapping[str, str] | None:
    """What was written beside the weights; None where nothing was."""
    if not (folder / FILE).exists():
        return None
    recorded = read_json(folder / FILE, "digests of experts").get("sha256")
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{folder / FILE}: sha256 should name a digest for each expert")
    return recorded


def _combined(tensors: Mapping[str, "hashlib._Hash"]) -> str:
    """Whatever the order in which tensors were read."""
    lines = [f"{name} {known.hexdigest()}\n" for name, known in sorted(tensors.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _of_experts(piece: Piece, part: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each expert in a part, by number; nothing where it holds none."""
    if _EXPERTS not in piece.ours:
        return
    first = piece.at[0] if piece.at else slice(None)
    if isinstance(first, int):
        yield first, part
    else:
        yield from enumerate(part)
