"""Writes and reads digests.json, which records a SHA-256 of each tensor in the folder's files.

A tensor that stacks several experts is cut into equal parts, and each expert has its own digest.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtura.errors import CheckpointError
from mixtura.integrity import Claim, claim_of_bytes, named
from mixtura.json_reader import MOST_BYTES_LISTED, read_object
from mixtura.tensor_files.header import read_header

if TYPE_CHECKING:
    from torch import Tensor

FILE = "digests.json"
_THREADS = 4
_HEX = frozenset("0123456789abcdef")

Digests = Mapping[str, Sequence[str]]
"""for each tensor name, one SHA-256 of the whole tensor, or one for each of its experts"""


def digests_of(
    tensors: "Mapping[str, Tensor]", experts: Mapping[str, int] | None = None
) -> Digests:
    """Compute the digests of tensors on any device.

    `experts` maps a tensor's name to the number of experts that the tensor stacks. A tensor that
    `experts` does not list gets one digest.
    """
    parts = experts or {}
    with ThreadPoolExecutor(_THREADS, "digests") as pool:
        found = pool.map(lambda name: _digests(tensors[name], parts.get(name, 1)), list(tensors))
        return dict(zip(tensors, found, strict=True))


def write_digests(folder: Path, files: Mapping[str, Digests]) -> None:
    text = json.dumps({"sha256": files}, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def recorded_digests(folder: Path) -> Mapping[str, Digests] | None:
    """Read digests.json into a mapping from file name to that file's `Digests`.

    Returns None if the folder has no digests.json. Raises CheckpointError for a malformed file.
    """
    path = folder / FILE
    try:
        recorded = read_object(path, CheckpointError, MOST_BYTES_LISTED).get("sha256")
    except FileNotFoundError:
        return None
    if not isinstance(recorded, dict) or not all(map(_is_of_a_file, recorded.values())):
        raise CheckpointError(f"{path}: sha256 should hold the digests of each file's tensors")
    return recorded


def folder_claims(
    folder: Path, recorded: Mapping[str, Digests], role_of: Callable[[str], str | None]
) -> Iterator[Claim]:
    """Yield a claim for each recorded digest: the digest, and the bytes that should have it.

    `role_of` returns a tensor's role in the model, such as "norm", which error messages name.
    Raises CheckpointError if a listed file or tensor is missing, or if the tensor's bytes cannot be
    divided equally among its digests.
    """
    for file, digests in recorded.items():
        # A name such as "../x" would lead to a file outside this folder.
        if Path(file).name != file:
            raise CheckpointError(f"{folder / FILE}: names the file {file!r}, which leaves it")
        spans = read_header(folder / file)
        for name, each in digests.items():
            span = spans.get(name)
            if span is None or span.bytes % len(each):
                raise CheckpointError(
                    f"{folder / FILE}: has {len(each)} digests of {name}, which {file} does not "
                    "hold; fetch both again"
                )
            size = span.bytes // len(each)
            for number, digest in enumerate(each):
                what = named(name, role_of(name), number if len(each) > 1 else None)
                yield claim_of_bytes(folder / file, what, digest, span.start + number * size, size)


def _digests(tensor: "Tensor", parts: int) -> list[str]:
    import torch

    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return [_digest(part) for part in raw.view(parts, -1)]


def _digest(raw: "Tensor") -> str:
    return hashlib.sha256(raw.numpy().data).hexdigest()


def _is_of_a_file(digests: Any) -> bool:
    return isinstance(digests, dict) and all(map(_is_of_a_tensor, digests.values()))


def _is_of_a_tensor(each: Any) -> bool:
    return (
        isinstance(each, list)
        and len(each) > 0
        and all(isinstance(one, str) and len(one) == 64 and set(one) <= _HEX for one in each)
    )
