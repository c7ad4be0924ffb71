"""Converts a run, a packed folder or a checkpoint to a GGUF file."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.checkpoints.expected_tensors import described
from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.gguf.architectures import OF_FAMILY, architecture_for
from mixtura.checkpoints.gguf.file_writer import KindName, write_gguf
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.model_kind import GGUF
from mixtura.checkpoints.weight_readers import open_weights, source_of
from mixtura.errors import ConfigError, StorageError, reading
from mixtura.shapes.families import family_named, family_of


@dataclass(frozen=True, slots=True)
class ConvertedToGGUF:
    """The GGUF file that was written, and remarks for the user."""

    path: Path
    family: str
    architecture: str
    """llama.cpp's name of the model's architecture, such as `qwen3moe`"""
    kind: str
    """the storage format of most weights, such as `q8_0`"""
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
    """Write the model and its tokenizer as the GGUF file `out`, which appears only when complete.

    With `family` None a checkpoint keeps its family. A run gets the first family that has an
    architecture in llama.cpp and whose config can express the run's model. `kind` is the storage
    format of matrices; `write_gguf` describes the default. The weights are compared with their
    digests before `out` appears; with `verify`, before anything is written. Raises ConfigError,
    CheckpointError, DataError or StorageError if the model cannot be read or written.
    """
    if out.suffix != GGUF:
        raise ConfigError(f"{out}: a GGUF file is written; let its name end in {GGUF}")
    if os.path.lexists(out):
        raise StorageError(f"{out}: already exists; remove it or choose another place")
    if family is not None:
        architecture_for(family_named(family).model_type)
    with reading(model):
        path = folder_of(str(model))
        opened = open_weights(path)
        tokenizer = opened.needed_tokenizer()
        source = source_of(opened.weights, opened.family_for(family, OF_FAMILY))
    check = source.weights.check if isinstance(source, FamilySource) else opened.weights.check
    check.begin()
    if verify:
        check.finish()
    written = write_gguf(
        source,
        tokenizer,
        out,
        name=path.resolve().name.removesuffix(GGUF),
        kind=kind,
        check=check,
        progress=progress,
    )
    return ConvertedToGGUF(
        written.path,
        family_of(source.config).model_type,
        written.architecture,
        written.kind,
        written.bytes,
        (*described(written.left_out), *(check.unchecked if verify else ())),
    )
