"""Whether a model's weights fit into the memory that is free, asked before any is read."""

from collections.abc import Iterator
from itertools import takewhile

import torch

from mixtura.checkpoints.loading import decoder_config
from mixtura.checkpoints.source import Source
from mixtura.errors import ConfigError
from mixtura.memory import free_bytes, in_words
from mixtura.shapes.families import family_of

# A group of 32 weights and its scale.
_OF_WEIGHT = {4: 4.5 / 8, 8: 8.5 / 8}


def check_weights_fit(source: Source, dtype: torch.dtype | None) -> None:
    """Raises ConfigError where they would not, with the first way to run it that would."""
    free = free_bytes()
    needed = weight_bytes(source, dtype)
    if free is None or needed <= free:
        return
    ways = list(_smaller_ways(source, dtype))
    fitting = [way for way in ways if way[1] <= free]
    way, size = fitting[0] if fitting else min(ways, key=lambda way: way[1])
    remedy = f"{way} ({in_words(int(size))}"
    remedy += ")" if fitting else ", which do not fit either: free some memory)"
    raise ConfigError(
        f"{source.path}: its weights take {in_words(needed)} and {in_words(free)} of memory are "
        f"free; {remedy}"
    )


def weight_bytes(source: Source, dtype: torch.dtype | None) -> int:
    """Of all that the decoder holds, in `dtype` or as `read` would give it."""
    return sum(
        source.tensors[name].parameters * (dtype or source.dtype_of(name)).itemsize
        for name in _used(source)
    )


def _smaller_ways(source: Source, dtype: torch.dtype | None) -> Iterator[tuple[str, float]]:
    """What to do instead, and the bytes that it takes; the nearest to what was asked for first."""
    count = {name: source.tensors[name].parameters for name in _used(source)}
    if source.path.suffix == ".gguf" and dtype is not None:
        size = sum(n * _OF_WEIGHT[source.stored_bits(name)] for name, n in count.items())
        yield "without --dtype it runs from packed weights", size
    total = sum(count.values())
    # A gate that is stored in fp32 beside other weights stays so.
    in_bf16 = weight_bytes(source, torch.bfloat16)
    if in_bf16 < 0.75 * weight_bytes(source, dtype):
        yield "compute with --dtype bfloat16", in_bf16
    for bits, of_weight in reversed(_OF_WEIGHT.items()):
        yield f"'mixtura pack {source.path} OUT --bits {bits}'", of_weight * total


def _used(source: Source) -> set[str]:
    """What the decoder takes, up to the first that is missing: loading says that it is."""
    family = family_of(source.config)
    names = (piece.stored for piece in family.pieces(decoder_config(family, source)))
    return set(takewhile(source.tensors.__contains__, names))
