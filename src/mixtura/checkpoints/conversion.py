"""A model in another layout: runs of ours and checkpoints of others', as Hugging Face folders."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.checkpoints.accounting import described
from mixtura.checkpoints.hf.folder import GENERATION, read_json
from mixtura.checkpoints.hf.saving import SHARD_BYTES, hf_config, save_model
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.loading import load_source
from mixtura.checkpoints.opening import DTYPES, DTypeName, OpenModel, open_plain
from mixtura.checkpoints.packed.source import PackedSource
from mixtura.errors import ConfigError, reading
from mixtura.files import atomic_text
from mixtura.models import Decoder, DecoderConfig
from mixtura.models.packed_decoder import packed_blueprint
from mixtura.packed.file import PackedFile
from mixtura.packed.folder import FILE, is_packed
from mixtura.shapes.families import FAMILIES, Family, family_named
from mixtura.tokenizers import Tokenizer, load_tokenizer
from mixtura.tokenizers.exported_tokenizer import as_checkpoint


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written, and what a user should know of it."""

    path: Path
    family: str
    files: tuple[str, ...]
    bytes: int
    remarks: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "family": self.family,
            "files": list(self.files),
            "bytes": self.bytes,
            "remarks": list(self.remarks),
        }


def convert_model(
    model: str | Path,
    out: Path,
    *,
    family: str | None = None,
    dtype: DTypeName | None = None,
    shard_bytes: int = SHARD_BYTES,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write the model as a Hugging Face folder; `out` appears whole or not at all.

    Without a `family` a checkpoint keeps its own, and a run takes the first that can say all of
    what it computes. Digests are compared before `out` appears, or to `verify` before anything is
    written. Raises ConfigError where no family will do, by the key that has no place.
    """
    with reading(model):
        path = folder_of(str(model))
        opened = (
            _unpacked(path, family, wait=verify)
            if is_packed(path)
            else open_plain(model, wait=verify)
        )
    decoder, origin = opened.decoder, opened.origin
    if not isinstance(decoder, Decoder):
        raise ConfigError(
            f"{model}: this model, a {type(decoder).__name__}, is of no Hugging Face family; "
            "convert a run whose model is a decoder"
        )
    own = None if origin is None else origin.family
    chosen = family_named(family) if family else own or first_family(decoder.config)
    folder = origin is not None and origin.source.path.is_dir()

    def companions(partial: Path) -> None:
        if not folder:
            write_tokenizer(opened.tokenizer, partial)

    saved = save_model(
        decoder,
        chosen,
        out,
        like=None if origin is None else origin.source,
        dtype=None if dtype is None else DTYPES[dtype],
        companions=companions,
        check=opened.check,
        shard_bytes=shard_bytes,
        progress=progress,
    )
    remarks = () if origin is None else tuple(described(origin.left_out))
    remarks += opened.check.unchecked if verify else ()
    return Converted(saved.path, chosen.model_type, saved.files, saved.bytes, remarks)


def packed_source(path: Path, family: str | None, among: Iterable[str] = FAMILIES) -> PackedSource:
    """A packed folder, as a checkpoint of that family, else of the one that it was made from.

    What was packed from a run takes the first of `among` that can say all of what it computes.
    """
    file = PackedFile(path / FILE)
    config = packed_blueprint(file).config
    own = family or file.header.family
    try:
        chosen = family_named(own) if own in FAMILIES or family else first_family(config, among)
        return PackedSource(file, chosen)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from error


def _unpacked(path: Path, family: str | None, *, wait: bool) -> OpenModel:
    """A packed model in fp32, which holds its numbers exactly."""
    loaded = load_source(packed_source(path, family), DTYPES["float32"], wait=wait)
    return OpenModel(str(path), loaded.decoder, load_tokenizer(path), loaded, loaded.check)


def first_family(config: DecoderConfig, among: Iterable[str] = FAMILIES) -> Family:
    """The first family that has words for all that this decoder computes.

    Raises ConfigError with what the plainest of them lacks.
    """
    plainest = "llama" if config.moe is None else "mixtral"
    for family in map(family_named, sorted(among, key=lambda one: one != plainest)):
        try:
            hf_config(config, family)
        except ConfigError:
            continue
        return family
    hf_config(config, family_named(plainest))
    raise AssertionError("the line before raises")


def write_tokenizer(tokenizer: Tokenizer, folder: Path, like: Path | None = None) -> None:
    """As transformers' AutoTokenizer reads it, and where an answer ends.

    What the model in the folder `like` says of generation is carried over.
    """
    as_checkpoint(tokenizer).save(folder)
    ends = sorted(tokenizer.ends)
    own = None if like is None else like / GENERATION
    stated = read_json(own, "how its model generates") if own and own.is_file() else {}
    generation = {**stated, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    atomic_text(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
