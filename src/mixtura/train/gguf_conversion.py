"""A model as a GGUF file: runs of ours, packed folders, and checkpoints of others'."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.data import Tokenizer, load_tokenizer
from mixtura.errors import ConfigError, StorageError
from mixtura.interop.decoder_source import DecoderSource
from mixtura.interop.gguf.architectures import OF_FAMILY, architecture_for
from mixtura.interop.gguf.writing import KindName, write_gguf
from mixtura.interop.hub import folder_of
from mixtura.interop.loading import load_source, open_source, tokenizer_of
from mixtura.interop.source import Source
from mixtura.interop.weights import described
from mixtura.models import Decoder
from mixtura.packed.file import is_packed
from mixtura.shapes.families import family_named, family_of
from mixtura.train.conversion import first_family, packed_source
from mixtura.train.loading import load_run
from mixtura.train.opening import is_run

SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class ConvertedToGGUF:
    """What was written, and what a user should know of it."""

    path: Path
    family: str
    architecture: str
    """as llama.cpp calls it"""
    kind: str
    """what most weights are stored as"""
    bytes: int
    remarks: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "family": self.family,
            "architecture": self.architecture,
            "type": self.kind,
            "bytes": self.bytes,
            "remarks": list(self.remarks),
        }


def convert_to_gguf(
    model: str | Path,
    out: Path,
    *,
    family: str | None = None,
    kind: KindName | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertedToGGUF:
    """Write the model as one GGUF file with its tokenizer; `out` appears whole or not at all.

    Without a `family` a checkpoint keeps its own, and a run takes the first that can say all of
    what it computes and that llama.cpp has an architecture for; `kind` is what matrices are stored
    as, by default what `write_gguf` says. Raises ConfigError, CheckpointError, DataError or
    StorageError, by name, for what cannot be written.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f"{out}: a GGUF file is written; let its name end in {SUFFIX}")
    if os.path.lexists(out):
        raise StorageError(f"{out}: already exists; remove it or choose another place")
    if family is not None:
        architecture_for(family_named(family).model_type)
    path = folder_of(str(model))
    source, tokenizer = _opened(path, family)
    name = path.resolve().name.removesuffix(SUFFIX)
    written = write_gguf(source, tokenizer, out, name=name, kind=kind, progress=progress)
    return ConvertedToGGUF(
        written.path,
        family_of(source.config).model_type,
        written.architecture,
        written.kind,
        written.bytes,
        tuple(described(written.left_out)),
    )


def _opened(path: Path, family: str | None) -> tuple[Source, Tokenizer]:
    if is_run(path):
        run = load_run(path)
        return _of_decoder(run.decoder, family, path), run.tokenizer
    if is_packed(path):
        return packed_source(path, family, OF_FAMILY), load_tokenizer(path)
    source = open_source(path)
    tokenizer = tokenizer_of(source)
    if family in (None, family_of(source.config).model_type):
        return source, tokenizer
    return _of_decoder(load_source(source).decoder, family, path), tokenizer


def _of_decoder(decoder: object, family: str | None, path: Path) -> DecoderSource:
    if not isinstance(decoder, Decoder):
        raise ConfigError(
            f"{path}: this model, a {type(decoder).__name__}, is of no architecture that llama.cpp "
            "has; convert a run whose model is a decoder"
        )
    chosen = first_family(decoder.config, OF_FAMILY) if family is None else family_named(family)
    return DecoderSource(decoder, chosen, path)
