"""Converts a run, a Hugging Face folder or a GGUF file to a packed folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixtura.checkpoints.conversion import write_tokenizer
from mixtura.checkpoints.expected_tensors import described
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.model_kind import what_is
from mixtura.checkpoints.packed.file_writer import Precision, write_packed
from mixtura.checkpoints.weight_readers import open_weights
from mixtura.errors import ConfigError, DataError, reading
from mixtura.files import atomic_folder
from mixtura.packed.folder import FILE
from mixtura.packed.header import Header
from mixtura.shapes.storage.numbers import Bits

RUN_FAMILY = "mixtura"


@dataclass(frozen=True, slots=True)
class Packed:
    """The packed folder that was written, and remarks for the user."""

    path: Path
    family: str
    bits: Bits
    head_bits: Bits
    files: tuple[str, ...]
    bytes: int
    """the size of the file with the packed weights"""
    parameters: int
    remarks: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "family": self.family,
            "bits": self.bits,
            "head_bits": self.head_bits,
            "files": list(self.files),
            "bytes": self.bytes,
            "parameters": self.parameters,
            "bits_per_weight": 8 * self.bytes / self.parameters,
            "remarks": list(self.remarks),
        }


def pack_model(
    model: str | Path,
    out: Path,
    bits: Bits | None = 4,
    *,
    head_bits: Bits | None = None,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the model as the packed folder `out`, which appears only when it is complete.

    The head and the embedding are packed in `head_bits`, by default `bits`. With `bits` None each
    tensor of a GGUF file gets the fewest bits that keep its stored precision. The weights are
    compared with their digests before `out` appears; with `verify`, before anything is written.
    Raises ConfigError, CheckpointError or StorageError if the model cannot be packed, read or
    written.
    """
    path = folder_of(str(model))
    if what_is(path) == "packed":
        raise ConfigError(f"{model}: is packed already; pack the model that it was made from")
    if bits is None and what_is(path) != "gguf":
        raise ConfigError(f"{model}: only a GGUF file says in how many bits; give 4 or 8")
    precision = Precision(bits, bits if head_bits is None else head_bits)
    with reading(model), atomic_folder(out) as folder:
        packed = pack_into(folder, path, precision, verify=verify, progress=progress)
    return replace(packed, path=out)


def pack_into(
    folder: Path,
    path: Path,
    precision: Precision,
    *,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
    room: Callable[[int], None] | None = None,
) -> Packed:
    """Pack the model at `path` into the empty folder `folder`; an error may leave it incomplete.

    The options are those of `pack_model`. `room` is called with the size of the packed file before
    any byte is written.
    """
    opened = open_weights(path)
    weights, check = opened.weights, opened.weights.check
    check.begin()
    if verify:
        check.finish()
    family = RUN_FAMILY if opened.family is None else opened.family.model_type
    written = write_packed(folder / FILE, weights, family, precision, progress, room)
    remarks = list(described(opened.left_out))
    if isinstance(opened.tokenizer, DataError):
        remarks.append(f"no tokenizer is packed with it: {opened.tokenizer}")
    else:
        write_tokenizer(opened.tokenizer, folder, like=path)
    check.finish()
    files = tuple(sorted(entry.name for entry in folder.iterdir()))
    return Packed(
        folder,
        family,
        written.header.bits,
        _head_bits(written.header),
        files,
        written.bytes,
        weights.config.total_parameters(),
        (*remarks, *written.remarks, *(check.unchecked if verify else ())),
    )


def _head_bits(header: Header) -> Bits:
    (head,) = (entry for entry in header.tensors if entry.name == "head.weight")
    return head.bits
