"""Unpacks FP8 weights when they are read. Each block has a scale, as in DeepSeek-V3.

A block is a rectangle of a matrix, such as 128 by 128. The last block of a row or a column may be
smaller.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mixtura.checkpoints.source import Source, StoredTensor
from mixtura.errors import CheckpointError, ConfigError
from mixtura.shapes.families.keys import Keys

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCALE = "_scale_inv"
FP8 = "F8_E4M3"
TITLE = "FP8_BLOCK"
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")


class BlockFP8(Source):
    """A Source that combines each FP8 (e4m3) tensor NAME with its scales into one bf16 tensor NAME.

    The scales are stored as NAME_scale_inv. Raises ConfigError for settings that are not supported,
    and CheckpointError for a weight without scales, for scales without a weight, and for shapes
    that do not match.
    """

    def __init__(self, packed: Source) -> None:
        self.path, self.config = packed.path, packed.config
        self._packed = packed
        self._block = _block(packed.config["quantization_config"])
        self.tensors = dict(_unpacked(packed.tensors, self._block))
        self.quantisation = f"fp8 in blocks of {self._block[0]} x {self._block[1]}"

    def dtype_of(self, name: str) -> "torch.dtype":
        import torch

        quantised = self._packed.tensors[name].dtype == FP8
        return torch.bfloat16 if quantised else self._packed.dtype_of(name)

    def read(self, name: str) -> "Tensor":
        from mixtura.checkpoints.hf.fp8_blocks import holds_nan, unpack

        stored = self._packed.read(name)
        if self._packed.tensors[name].dtype != FP8:
            return stored
        if stored.numel() and holds_nan(stored):
            raise CheckpointError(f"{self.path}: {name} holds NaN; the file is damaged")
        return unpack(stored, self._packed.read(name + SCALE), self._block)


def _block(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Read the height and the width of a block from the `quantization_config`."""
    keys = Keys(settings, "fp8", "config.json: quantization_config")
    keys.expect("fmt", "e4m3", None)
    # The scheme "static" quantises a layer's inputs with one fixed scale. Mixtura does not quantise
    # inputs, so its outputs would differ from the outputs of a model with that scheme.
    keys.expect("activation_scheme", "dynamic", None)
    match settings.get("weight_block_size"):
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case other:
            raise ConfigError(
                f"config.json: quantization_config: weight_block_size={other!r} should be the "
                "rows and columns of a block, such as [128, 128]"
            )


def _unpacked(
    stored: Mapping[str, StoredTensor], block: tuple[int, int]
) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in stored.items():
        plain = name.removesuffix(SCALE)
        if plain != name:
            if plain not in stored or stored[plain].dtype != FP8:
                raise CheckpointError(
                    f"{tensor.file}: {name} is the scale of no {FP8} tensor {plain}"
                )
        elif tensor.dtype == FP8:
            scale = stored.get(name + SCALE)
            if scale is None:
                raise CheckpointError(
                    f"{tensor.file}: {name} is {FP8} without {name}{SCALE}, the factors of its "
                    "blocks"
                )
            _check_scale(tensor, scale, block)
            yield name, replace(tensor, dtype=TITLE, bytes=tensor.bytes + scale.bytes)
        else:
            yield name, tensor


def _check_scale(weight: StoredTensor, scale: StoredTensor, block: tuple[int, int]) -> None:
    if len(weight.shape) < 2 or len(scale.shape) < 2:
        expected = None
    else:
        *outer, rows, columns = weight.shape
        expected = (*outer, -(-rows // block[0]), -(-columns // block[1]))
    if scale.shape != expected:
        raise CheckpointError(
            f"{scale.file}: {scale.name} is of shape {scale.shape} where a weight of "
            f"{weight.shape} in blocks of {block} has {expected or 'none'}"
        )
    if scale.dtype not in _SCALES:
        raise CheckpointError(
            f"{scale.file}: {scale.name} is {scale.dtype}; scales are read as {', '.join(_SCALES)}"
        )
