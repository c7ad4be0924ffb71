"""Writes a model's weights to one packed file, quantised to 4 or 8 bits for CPU kernels."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from mixtura import __version__
from mixtura.checkpoints.source_weights import tensors_in_words
from mixtura.checkpoints.weights import Weights
from mixtura.kernels.packed.tiles import tile, tile_expert
from mixtura.packed.file import PackedWriter
from mixtura.packed.header import PLAIN, Entry, Header, undigested
from mixtura.shapes import DecoderShape
from mixtura.shapes.storage.numbers import Bits, Plain
from mixtura.shapes.storage.packed import (
    FFNs,
    Placed,
    Planned,
    is_outer,
    packed_layout,
    planned_of,
)

_FORMATS: Mapping[torch.dtype, Plain] = {getattr(torch, name): name for name in get_args(Plain)}
BitsOf = Callable[[Iterable[str]], Bits]
"""takes names of tensors; returns the fewest bits that keep the stored precision of all of them"""


@dataclass(frozen=True, slots=True)
class Precision:
    """The bits of packed weights: `head_bits` for the head and the embedding, `bits` for others.

    None means the fewest bits that keep the stored precision.
    """

    bits: Bits | None
    head_bits: Bits | None

    def of(self, one: Planned, stored_bits: BitsOf) -> Bits:
        own = self.head_bits if one.outer else self.bits
        return stored_bits(one.weights) if own is None else own


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """The header and the size in bytes of the file that was written, and remarks for the user."""

    header: Header
    bytes: int
    remarks: tuple[str, ...]


def write_packed(
    path: Path,
    weights: Weights,
    family: str,
    precision: Precision,
    progress: Callable[[int, int], None] | None = None,
    room: Callable[[int], None] | None = None,
) -> WrittenFile:
    """Write a packed file; at most one tensor, or one layer's experts, is in memory at a time.

    `progress` is called with the number of bytes written and the total. `room` is called with the
    total before any byte is written. Raises ConfigError, naming the tensor, for weights that cannot
    be packed.
    """
    config = weights.config
    planned = planned_of(config)
    of_plan = {name for one in planned for name in one.weights}
    assert of_plan == set(weights.like), "all are in the ledger"
    layout = layout_of(config, precision, weights.stored_bits, weights.dtype_of)
    entries = tuple(undigested(one) for one in layout)
    header = Header(
        writer=f"mixtura {__version__}",
        family=family,
        bits=_most(entries),
        config=config.model_dump(mode="json"),
        tensors=entries,
    )
    with path.open("wb") as handle:
        writer = PackedWriter(handle, header)
        if room is not None:
            room(writer.bytes)
        for one, entry in zip(planned, header.tensors, strict=True):
            with writer.tensor() as out:
                for part in _parts(one, entry, weights):
                    out.add(part)
                    if progress is not None:
                        progress(writer.done + out.bytes, writer.bytes)
            weights.release()
        written = writer.finish()
    remarks = (*weights.remarks(), *_padded(planned))
    return WrittenFile(written, writer.bytes, remarks)


def layout_of(
    shape: DecoderShape,
    precision: Precision,
    stored_bits: BitsOf,
    dtype_of: Callable[[str], torch.dtype],
) -> tuple[Placed, ...]:
    """Compute the format, shape and place of all tensors that `write_packed` would write.

    No tensor is read. Raises ConfigError for a model that cannot be packed.
    """

    def plain(name: str) -> Plain:
        # A dtype that the packed file cannot hold, such as float64, is converted to fp32.
        return _FORMATS.get(dtype_of(name), "float32")

    return packed_layout(shape, lambda one: precision.of(one, stored_bits), plain)


def _most(entries: Iterable[Entry]) -> Bits:
    """The bits of most packed weights; the head and the embedding are not counted."""
    count: Counter[Bits] = Counter()
    for entry in entries:
        if entry.kind != "plain":
            # The head and the embedding count as one weight each, which matters only if no other
            # tensor is packed.
            count[entry.bits] += 1 if is_outer(entry.name) else prod(entry.shape)
    return max(count, key=lambda bits: count[bits])


def _parts(one: Planned, entry: Entry, weights: Weights) -> Iterator[Tensor]:
    """Yield the bytes of one tensor; if it holds experts, one expert at a time."""
    match one.kind:
        case "plain":
            yield weights.tensor(one.name).to(PLAIN[entry.format])
        case "tiles":
            yield tile(weights.matrix(one.name, entry.bits))
        case "experts":
            ffns = FFNs(*one.shape)
            w_in, w_out = one.weights
            # A dense FFN is written like a single expert, but its weights lack the dim for experts.
            numbers = range(ffns.experts) if weights.like[w_in].dim() == 3 else [None]
            for expert in numbers:
                inner = weights.matrix(w_in, entry.bits, expert)
                outer = weights.matrix(w_out, entry.bits, expert)
                yield tile_expert(inner, outer, ffns.gated)


def _padded(planned: Iterable[Planned]) -> Iterator[str]:
    padded = [(one, one.padded) for one in planned if one.padded is not None]
    if padded:
        first, (width, to) = padded[0]
        yield (
            f"{tensors_in_words(len(padded))} of a width that groups of 32 do not divide, such as "
            f"{first.name}, padded with zeros, there from {width} to {to}"
        )
