"""Checks that a model's weights fit into the free memory, before they are read."""

from collections.abc import Iterator
from itertools import takewhile

import torch

from mixtura.checkpoints.loaded_model import decoder_config
from mixtura.checkpoints.packed.file_writer import Precision, layout_of
from mixtura.checkpoints.packed.group_reader import GroupReader
from mixtura.checkpoints.source import Source
from mixtura.errors import ConfigError
from mixtura.memory import free_bytes, in_words
from mixtura.shapes.families import Piece, family_of
from mixtura.shapes.storage import Bits, data_bytes

_BITS: tuple[Bits, ...] = (8, 4)


def check_weights_fit(source: Source, dtype: torch.dtype | None) -> None:
    """Raise ConfigError if the weights do not fit into the free memory.

    The message proposes a way to run the model in less memory.
    """
    free = free_bytes()
    needed = weight_bytes(source, dtype)
    if free is None or needed <= free:
        return
    raise ConfigError(
        f"{source.path}: its weights take {in_words(needed)} and {in_words(free)} of memory are "
        f"free; {_remedy(list(_smaller_ways(source, dtype)), free)}"
    )


def weight_bytes(source: Source, dtype: torch.dtype | None) -> int:
    """Bytes of the decoder's weights in `dtype`; with None, in the dtypes that `read` returns."""
    return sum(
        source.tensors[name].parameters * (dtype or source.dtype_of(name)).itemsize
        for name in {piece.stored for piece in _used(source)}
    )


def packed_bytes(source: Source, bits: Bits | None) -> int | None:
    """Bytes that the tensors would take after packing; `bits` None keeps the stored precision.

    Returns None if the model cannot be packed, or if tensors are missing.
    """
    config = decoder_config(family_of(source.config), source)
    reader = GroupReader(source, _used(source))
    if {one.name for one in config.tensors()} - {piece.ours for piece in reader.pieces}:
        return None
    try:
        return data_bytes(
            layout_of(config, Precision(bits, bits), reader.stored_bits, reader.stored_dtype)
        )
    except ConfigError:
        return None


def _smaller_ways(source: Source, dtype: torch.dtype | None) -> Iterator[tuple[str, int]]:
    """Yield other ways to run the model, in order of preference, and the bytes of each."""
    if source.path.suffix == ".gguf" and dtype is not None:
        size = packed_bytes(source, None)
        if size is not None:
            yield "without --dtype it runs from packed weights", size
    # A bf16 model with fp32 gates takes slightly more than `in_bf16` bytes. The factor 0.75 keeps
    # bfloat16 from being proposed for a model that is in bf16 already.
    in_bf16 = weight_bytes(source, torch.bfloat16)
    if in_bf16 < 0.75 * weight_bytes(source, dtype):
        yield "compute with --dtype bfloat16", in_bf16
    for bits in _BITS:
        size = packed_bytes(source, bits)
        if size is not None:
            yield f"'mixtura pack {source.path} OUT --bits {bits}'", size


def _remedy(ways: list[tuple[str, int]], free: int) -> str:
    if not ways:
        return "free some memory"
    fitting = [way for way in ways if way[1] <= free]
    way, size = fitting[0] if fitting else min(ways, key=lambda way: way[1])
    also = "" if fitting else ", which do not fit either: free some memory"
    return f"{way} ({in_words(size)}{also})"


def _used(source: Source) -> list[Piece]:
    """The pieces of the model, up to the first missing tensor; loading reports missing tensors."""
    family = family_of(source.config)
    pieces = family.pieces(decoder_config(family, source))
    return list(takewhile(lambda piece: piece.stored in source.tensors, pieces))
