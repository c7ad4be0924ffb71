"""Opens the weights of any model for conversion, with one reader for each kind of model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mixtura.checkpoints.expected_tensors import check_tensors
from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.hf.model_config import first_family
from mixtura.checkpoints.loaded_model import (
    check_vocabulary,
    decoder_config,
    open_source,
    tokenizer_of,
)
from mixtura.checkpoints.loaded_run import load_run
from mixtura.checkpoints.model_kind import what_is
from mixtura.checkpoints.packed.weights import PackedWeights
from mixtura.checkpoints.source import Source
from mixtura.checkpoints.source_weights import SourceWeights
from mixtura.checkpoints.weights import DecoderWeights, Weights
from mixtura.errors import ConfigError, DataError
from mixtura.models import Decoder
from mixtura.packed.file import PackedFile
from mixtura.packed.folder import FILE
from mixtura.shapes.families import FAMILIES, Family, family_named, family_of
from mixtura.tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class OpenWeights:
    """The weights and the tokenizer of a model that is to be converted."""

    weights: Weights
    family: Family | None
    """the family of a checkpoint; None for a run, and for a folder packed from a run"""
    tokenizer: Tokenizer | DataError
    """the tokenizer, or the error that says why there is none"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """a description of each stored tensor that the model does not use, by the tensor's name"""

    def family_for(self, named: str | None, among: Iterable[str] = FAMILIES) -> Family:
        """Return the family to write the model as.

        This is the family `named`, else the model's own family, else the first family of `among`
        whose config can express the model. Raises ConfigError if there is none.
        """
        try:
            if named is not None:
                return family_named(named)
            return self.family or first_family(self.weights.config, among)
        except ConfigError as error:
            raise ConfigError(f"{self.weights.path}: {error}") from error

    def needed_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises DataError if there is none."""
        if isinstance(self.tokenizer, DataError):
            raise self.tokenizer
        return self.tokenizer


def open_weights(path: Path) -> OpenWeights:
    """Open the model at `path`.

    Raises CheckpointError, ConfigError or DataError if the model cannot be used.
    """
    match what_is(path):
        case "packed":
            return _of_packed(path)
        case "run":
            return _of_run(path)
        case _:
            return _of_source(path)


def source_of(weights: Weights, family: Family) -> Source:
    """Present the weights as a checkpoint of `family`.

    If the weights are read from a checkpoint of that family, this checkpoint itself is returned.
    """
    if isinstance(weights, SourceWeights) and weights.family.model_type == family.model_type:
        return weights.source
    return FamilySource(weights.in_memory(), family)


def _of_packed(path: Path) -> OpenWeights:
    weights = PackedWeights(PackedFile(path / FILE))
    own = weights.file.header.family
    family = family_named(own) if own in FAMILIES else None
    return OpenWeights(weights, family, load_tokenizer(path))


def _of_run(path: Path) -> OpenWeights:
    run = load_run(path, wait=False)
    if not isinstance(run.decoder, Decoder):
        raise ConfigError(
            f"{path}: this model, a {type(run.decoder).__name__}, is no decoder, and other formats "
            "hold decoders alone; take a run whose model is one"
        )
    return OpenWeights(DecoderWeights(run.decoder, path, run.check), None, run.tokenizer)


def _of_source(path: Path) -> OpenWeights:
    source = open_source(path)
    family = family_of(source.config)
    # The check comes first, because `SourceWeights` lists every piece that the config describes. A
    # damaged config may describe far more layers than the files hold.
    left_out = check_tensors(source, family, family.pieces(decoder_config(family, source)))
    weights = SourceWeights(source)
    try:
        tokenizer = tokenizer_of(weights.source)
    except DataError as error:
        return OpenWeights(weights, weights.family, error, left_out)
    check_vocabulary(path, tokenizer, weights.config)
    return OpenWeights(weights, weights.family, tokenizer, left_out)
