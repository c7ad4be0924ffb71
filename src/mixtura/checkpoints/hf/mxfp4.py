"""Unpacks weights in MXFP4, the format of gpt-oss, when they are read.

E experts, R rows of a matrix, G groups of 32 weights in a row.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mixtura.checkpoints.source import Source, StoredTensor
from mixtura.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TITLE = "MXFP4"
BLOCKS, SCALES = "_blocks", "_scales"
GROUP = 32
# A scale is an e8m0 number: a power of two, except that byte 255 is NaN.
_NAN = 255


class MXFP4(Source):
    """A Source that combines each pair NAME_blocks and NAME_scales into one bf16 tensor NAME.

    In MXFP4 a group of 32 four-bit floats shares one scale, a power of two (OCP Microscaling
    Formats 1.0, section 5). bf16 holds the product of a float and its scale exactly, so
    unpacking rounds nothing. Raises CheckpointError if one tensor of a pair is missing, or if
    shapes do not match.
    """

    quantisation = "mxfp4"

    def __init__(self, packed: Source) -> None:
        self.path, self.config = packed.path, packed.config
        self._packed = packed
        self.tensors = dict(_unpacked(packed.tensors))

    def dtype_of(self, name: str) -> "torch.dtype":
        import torch

        plain = name in self._packed.tensors
        return self._packed.dtype_of(name) if plain else torch.bfloat16

    def read(self, name: str) -> "Tensor":
        from mixtura.checkpoints.hf.mxfp4_blocks import unpack

        if name in self._packed.tensors:
            return self._packed.read(name)
        scale_ERG = self._packed.read(f"{name}{SCALES}")
        if bool((scale_ERG == _NAN).any()):
            raise CheckpointError(
                f"{self.path}: {name}{SCALES} holds {_NAN}, which is no scale; the file is damaged"
            )
        # Transposed: MXFP4 files have a row for each output, gpt-oss in bf16 a column for each.
        return unpack(self._packed.read(f"{name}{BLOCKS}"), scale_ERG).mT


def _unpacked(stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """The tensors after unpacking, by name."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        plain = name.removesuffix(BLOCKS)
        if name.endswith(SCALES):
            _partner(stored, tensor, name.removesuffix(SCALES) + BLOCKS)
        elif plain == name:
            found[name] = tensor
        else:
            scales = _partner(stored, tensor, plain + SCALES)
            experts, rows, groups = _sizes(tensor, scales)
            size = tensor.bytes + scales.bytes
            shape = (experts, GROUP * groups, rows)
            found[plain] = StoredTensor(plain, shape, TITLE, tensor.file, size)
    return found


def _partner(
    stored: Mapping[str, StoredTensor], tensor: StoredTensor, partner: str
) -> StoredTensor:
    if partner not in stored:
        raise CheckpointError(
            f"{tensor.file}: holds {tensor.name} without {partner}; MXFP4 weights need both"
        )
    return stored[partner]


def _sizes(blocks: StoredTensor, scales: StoredTensor) -> tuple[int, int, int]:
    fits = len(blocks.shape) == 4 and blocks.shape == (*scales.shape, GROUP // 2)
    if not fits or (blocks.dtype, scales.dtype) != ("U8", "U8"):
        raise CheckpointError(
            f"{blocks.file}: {blocks.name} is {blocks.dtype} of shape {blocks.shape} and "
            f"{scales.name} is {scales.dtype} of shape {scales.shape}; MXFP4 weights are U8 of "
            f"(experts, rows, groups, {GROUP // 2}) with a scale for each group"
        )
    experts, rows, groups = scales.shape
    return experts, rows, groups
