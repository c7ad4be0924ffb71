"""A model as a GGUF file: runs of ours, packed folders, and checkpoints of others'."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mixtura.checkpoints.accounting import described
from mixtura.checkpoints.conversion import first_family, packed_source
from mixtura.checkpoints.decoder_source import DecoderSource
from mixtura.checkpoints.gguf.architectures import OF_FAMILY, architecture_for
from mixtura.checkpoints.gguf.writing import KindName, write_gguf
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.loading import decoder_config, load_source, open_source, tokenizer_of
from mixtura.checkpoints.run import load_run
from mixtura.checkpoints.source import Source
from mixtura.checkpoints.weight_check import check_of
from mixtura.errors import ConfigError, StorageError, reading
from mixtura.integrity import Check
from mixtura.models import Decoder
from mixtura.packed.folder import is_packed
from mixtura.runs.file_names import is_run
from mixtura.shapes.families import family_named, family_of
from mixtura.tokenizers import Tokenizer, load_tokenizer

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
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertedToGGUF:
    """Write the model as one GGUF file with its tokenizer; `out` appears whole or not at all.

    Without a `family` a checkpoint keeps its own, and a run takes the first that can say all of
    what it computes and that llama.cpp has an architecture for; `kind` is what matrices are stored
    as, by default what `write_gguf` says. Digests are compared before `out` appears, or to `verify`
    before anything is written. Raises ConfigError, CheckpointError, DataError or StorageError, by
    name, for what cannot be written.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f"{out}: a GGUF file is written; let its name end in {SUFFIX}")
    if os.path.lexists(out):
        raise StorageError(f"{out}: already exists; remove it or choose another place")
    if family is not None:
        architecture_for(family_named(family).model_type)
    with reading(model):
        path = folder_of(str(model))
        opened = _opened(path, family)
    opened.check.begin()
    if verify:
        opened.check.finish()
    written = write_gguf(
        opened.source,
        opened.tokenizer,
        out,
        name=path.resolve().name.removesuffix(SUFFIX),
        kind=kind,
        check=opened.check,
        progress=progress,
    )
    return ConvertedToGGUF(
        written.path,
        family_of(opened.source.config).model_type,
        written.architecture,
        written.kind,
        written.bytes,
        (*described(written.left_out), *(opened.check.unchecked if verify else ())),
    )


class _Opened(NamedTuple):
    source: Source
    tokenizer: Tokenizer
    check: Check


def _opened(path: Path, family: str | None) -> _Opened:
    if is_run(path):
        run = load_run(path, wait=False)
        return _Opened(_of_decoder(run.decoder, family, path), run.tokenizer, run.check)
    packed = is_packed(path)
    source = packed_source(path, family, OF_FAMILY) if packed else open_source(path)
    tokenizer = load_tokenizer(path) if packed else tokenizer_of(source)
    if packed or family in (None, family_of(source.config).model_type):
        own = family_of(source.config)
        config = decoder_config(own, source)
        return _Opened(source, tokenizer, check_of(source, list(own.pieces(config)), config))
    loaded = load_source(source, wait=False)
    return _Opened(_of_decoder(loaded.decoder, family, path), tokenizer, loaded.check)


def _of_decoder(decoder: object, family: str | None, path: Path) -> DecoderSource:
    if not isinstance(decoder, Decoder):
        raise ConfigError(
            f"{path}: this model, a {type(decoder).__name__}, is of no architecture that llama.cpp "
            "has; convert a run whose model is a decoder"
        )
    chosen = first_family(decoder.config, OF_FAMILY) if family is None else family_named(family)
    return DecoderSource(decoder, chosen, path)
