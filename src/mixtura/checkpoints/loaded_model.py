"""Loads a Hugging Face folder or a GGUF file into Mixtura's decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixtura.checkpoints.expected_tensors import check_tensors
from mixtura.checkpoints.hf.folder import CONFIG
from mixtura.checkpoints.piece_coverage import check_filled
from mixtura.checkpoints.source import Source
from mixtura.checkpoints.source_tensors import dtypes_of, read_weights
from mixtura.checkpoints.sources import open_source
from mixtura.checkpoints.weight_check import check_of
from mixtura.errors import CheckpointError
from mixtura.integrity import Check
from mixtura.models import Decoder, DecoderConfig
from mixtura.models.blueprint import without_weights
from mixtura.models.precision import gate_names
from mixtura.moe.routers.sigmoid import SigmoidTopK
from mixtura.moe.routers.token_choice import TokenChoiceRouter
from mixtura.shapes import ModelShape
from mixtura.shapes.families import Family, family_of
from mixtura.tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder in eval mode, and the checkpoint that it was loaded from."""

    decoder: Decoder
    family: Family
    source: Source
    left_out: Mapping[str, str]
    """a description of each stored tensor that the model does not use, by the tensor's name"""
    check: Check
    """the comparison of the weights with their digests; with `wait=False` it may still run"""


def tokenizer_of(source: Source) -> Tokenizer:
    """Read the tokenizer of a Hugging Face folder or a GGUF file.

    Raises DataError or CheckpointError if there is no usable tokenizer.
    """
    if source.path.is_dir():
        return load_tokenizer(source.path)
    from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer

    assert isinstance(source, GGUFSource), "all others are folders"
    return gguf_tokenizer(source.metadata)


def check_vocabulary(path: Path, tokenizer: Tokenizer, config: ModelShape) -> None:
    """Raise CheckpointError if the tokenizer has more tokens than the model's vocabulary."""
    if tokenizer.vocabulary > config.vocabulary:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocabulary} tokens and the model "
            f"{config.vocabulary}; they belong to different models"
        )


def load_model(
    path: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    wait: bool = True,
) -> LoadedModel:
    """Load a checkpoint tensor by tensor; with `dtype` None the weights keep their stored dtype.

    Router gates are never rounded (see `dtypes_of`). The weights are compared with their digests
    before this function returns. With `wait=False` the comparison runs in the background, and
    `check.finish()` waits for its result. Raises ConfigError for an unknown family or config key,
    and CheckpointError for files that are damaged or belong to another model.
    """
    return load_source(open_source(path), dtype, device, wait=wait)


def load_source(
    source: Source,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    wait: bool = True,
) -> LoadedModel:
    """Load a checkpoint that is already open, as `load_model` does."""
    family = family_of(source.config)
    config = decoder_config(family, source)
    left_out = check_tensors(source, family, family.pieces(config))
    pieces = list(family.pieces(config))
    with without_weights():
        decoder = config.build()
    shapes: dict[str, Any] = {**dict(decoder.named_parameters()), **dict(decoder.named_buffers())}
    check_filled(source.path, pieces, shapes)
    check = check_of(source, pieces, config)
    dtypes = dtypes_of(
        source,
        pieces,
        shapes,
        gate_names(decoder),
        dtype=dtype,
        gate_dtype=torch.float32 if "gates" in family.in_fp32 else None,
    )
    decoder.load_state_dict(read_weights(source, pieces, shapes, dtypes), assign=True)
    decoder.rotates_in_fp32 = "rotation" in family.in_fp32
    for module in decoder.modules():
        if isinstance(module, TokenChoiceRouter):
            module.weighs_in_fp32 = "weights" in family.in_fp32
        if isinstance(module, SigmoidTopK):
            module.scores_in_fp32 = "scores" in family.in_fp32
    check.begin()
    if wait:
        check.finish()
    return LoadedModel(decoder.to(device).eval(), family, source, left_out, check)


def decoder_config(family: Family, source: Source) -> DecoderConfig:
    """Translate the source's config to that of Mixtura's decoder.

    Raises ConfigError if the decoder does not support the model.
    """
    return DecoderConfig.parse(family.read(source.config), f"{source.path}: {CONFIG}")
