"""A model as a packed folder: runs of ours, Hugging Face folders, GGUF files."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mixtura.checkpoints.accounting import check_tensors, described
from mixtura.checkpoints.conversion import write_tokenizer
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.loading import decoder_config, open_source, tokenizer_of
from mixtura.checkpoints.opening import GGUF, check_vocabulary
from mixtura.checkpoints.packed.packing import Precision, write_packed
from mixtura.checkpoints.packed.quantised_pieces import GroupReader
from mixtura.checkpoints.run import load_run
from mixtura.checkpoints.source import Source, StoredTensor, spelt
from mixtura.checkpoints.weight_check import check_of
from mixtura.errors import ConfigError, DataError, reading
from mixtura.files import atomic_folder
from mixtura.integrity import Check
from mixtura.kernels.packed.groups import Bits
from mixtura.models import DecoderConfig
from mixtura.packed.folder import FILE, is_packed
from mixtura.packed.header import Header
from mixtura.runs.file_names import is_run
from mixtura.shapes.families import Piece, family_of
from mixtura.tokenizers import Tokenizer

RUN_FAMILY = "mixtura"


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written, and what a user should know of it."""

    path: Path
    family: str
    bits: Bits
    head_bits: Bits
    files: tuple[str, ...]
    bytes: int
    """of the packed file"""
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


@dataclass(frozen=True, slots=True)
class _Opened:
    """All that packing reads; no weight has been read yet."""

    family: str
    config: DecoderConfig
    source: Source
    pieces: list[Piece]
    tokenizer: Tokenizer | None
    check: Check
    remarks: tuple[str, ...]


def pack_model(
    model: str | Path,
    out: Path,
    bits: Bits | None = 4,
    *,
    head_bits: Bits | None = None,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the model as a packed folder; `out` appears whole or not at all.

    `head_bits` are those of the head and the embedding, by default `bits`. With `bits` None each
    tensor of a GGUF file is packed in the fewest that keep what is stored. Digests are compared
    before `out` appears, or to `verify` before anything is written. Raises ConfigError,
    CheckpointError or StorageError, by name, for what cannot be packed, read or written.
    """
    path = folder_of(str(model))
    if is_packed(path):
        raise ConfigError(f"{model}: is packed already; pack the model that it was made from")
    if bits is None and path.suffix != GGUF:
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
    """As `pack_model`, into an empty folder, file by file.

    `room` is told how many bytes will be written, before any is.
    """
    opened = _opened_run(path) if is_run(path) else _opened_source(path)
    opened.check.begin()
    if verify:
        opened.check.finish()
    reader = GroupReader(opened.source, opened.pieces)
    written = write_packed(
        folder / FILE,
        reader,
        opened.source,
        opened.config,
        opened.family,
        precision,
        progress,
        room,
    )
    if opened.tokenizer is not None:
        write_tokenizer(opened.tokenizer, folder, like=path)
    opened.check.finish()
    files = tuple(sorted(entry.name for entry in folder.iterdir()))
    return Packed(
        folder,
        opened.family,
        written.header.bits,
        _head_bits(written.header),
        files,
        written.bytes,
        opened.config.total_parameters(),
        (*opened.remarks, *written.remarks, *(opened.check.unchecked if verify else ())),
    )


def _head_bits(header: Header) -> Bits:
    (head,) = (entry for entry in header.tensors if entry.name == "head.weight")
    return head.bits


def _opened_source(path: Path) -> _Opened:
    source = open_source(path)
    family = family_of(source.config)
    config = decoder_config(family, source)
    remarks = tuple(described(check_tensors(source, family, family.pieces(config))))
    pieces = list(family.pieces(config))
    try:
        tokenizer = tokenizer_of(source)
    except DataError as error:
        tokenizer = None
        remarks += (f"no tokenizer is packed with it: {error}",)
    else:
        check_vocabulary(path, tokenizer, config)
    check = check_of(source, pieces, config)
    return _Opened(family.model_type, config, source, pieces, tokenizer, check, remarks)


def _opened_run(path: Path) -> _Opened:
    run = load_run(path, wait=False)
    config = run.decoder.config
    if not isinstance(config, DecoderConfig):
        raise ConfigError(
            f"{path}: this model, a {type(run.decoder).__name__}, is no decoder and cannot be "
            "packed; pack a run whose model is one"
        )
    source = _RunSource(path, run.decoder.state_dict().items())
    pieces = [Piece(name, tensor.shape, name) for name, tensor in source.tensors.items()]
    return _Opened(RUN_FAMILY, config, source, pieces, run.tokenizer, run.check, ())


class _RunSource(Source):
    """A run's tensors under our own names."""

    def __init__(self, path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.path, self.config = path, {}
        self._held = dict(tensors)
        self.tensors = {
            name: StoredTensor(name, tuple(tensor.shape), spelt(tensor.dtype), path, tensor.nbytes)
            for name, tensor in self._held.items()
        }

    def read(self, name: str) -> Tensor:
        return self._held[name]
