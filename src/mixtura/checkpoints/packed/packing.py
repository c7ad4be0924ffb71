"""Any source of weights as one packed file, tensor after tensor."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from mixtura import __version__
from mixtura.checkpoints.coverage import check_filled
from mixtura.checkpoints.packed.quantised_pieces import GroupReader
from mixtura.checkpoints.source import Source
from mixtura.kernels.packed.tiles import tile, tile_expert
from mixtura.models import DecoderConfig
from mixtura.models.blueprint import without_weights
from mixtura.packed.file import PackedWriter
from mixtura.packed.header import PLAIN, Entry, Header, undigested
from mixtura.shapes import DecoderShape
from mixtura.shapes.storage.numbers import Bits
from mixtura.shapes.storage.packed import (
    FFNs,
    Placed,
    Planned,
    is_outer,
    packed_layout,
    planned_of,
)


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits of a weight: of all that is packed, and of the head and the embedding.

    None stands for those that keep what a quantised file has stored.
    """

    bits: Bits | None
    head_bits: Bits | None

    def of(self, one: Planned, reader: GroupReader) -> Bits:
        own = self.head_bits if one.outer else self.bits
        return reader.stored_bits(one.weights) if own is None else own


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """What was written."""

    header: Header
    bytes: int
    remarks: tuple[str, ...]


def write_packed(
    path: Path,
    reader: GroupReader,
    source: Source,
    config: DecoderConfig,
    family: str,
    precision: Precision,
    progress: Callable[[int, int], None] | None = None,
    room: Callable[[int], None] | None = None,
) -> PackedWeights:
    """Write the file; no more than one tensor, or one layer's experts, is in memory at a time.

    `progress` is told the bytes written and the bytes in all; `room`, before any is written, the
    bytes in all. Raises ConfigError for weights that cannot be packed, by name.
    """
    with without_weights():
        model = config.build()
    like: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    check_filled(source.path, reader.pieces, like)
    planned = planned_of(config)
    assert {name for one in planned for name in one.weights} == set(like), "all are in the ledger"
    entries = tuple(undigested(one) for one in layout_of(reader, config, precision))
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
                for part in _parts(one, entry, reader, like):
                    out.add(part)
                    if progress is not None:
                        progress(writer.done + out.bytes, writer.bytes)
            reader.release()
        written = writer.finish()
    remarks = tuple(_remarks(planned, reader, source))
    return PackedWeights(written, writer.bytes, remarks)


def layout_of(reader: GroupReader, shape: DecoderShape, precision: Precision) -> tuple[Placed, ...]:
    """Every tensor that `write_packed` would write, before any is read. Raises as it does."""
    return packed_layout(shape, lambda one: precision.of(one, reader), reader.plain_format)


def _most(entries: Iterable[Entry]) -> Bits:
    """The bits that most packed weights have, the head's and the embedding's left out."""
    count: Counter[Bits] = Counter()
    for entry in entries:
        if entry.kind != "plain":
            # Where there is nothing else, the head and the embedding count.
            count[entry.bits] += 1 if is_outer(entry.name) else prod(entry.shape)
    return max(count, key=lambda bits: count[bits])


def _parts(
    one: Planned, entry: Entry, reader: GroupReader, like: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """The bytes of one tensor; of FFNs, an expert at a time."""
    match one.kind:
        case "plain":
            yield reader.plain(one.name, like[one.name]).to(PLAIN[entry.format])
        case "tiles":
            rows, inputs = one.shape
            yield tile(reader.matrix(one.name, (rows, inputs), entry.bits))
        case "experts":
            ffns = FFNs(*one.shape)
            w_in, w_out = one.weights
            # A dense FFN's weights are no stack.
            numbers = range(ffns.experts) if like[w_in].dim() == 3 else [None]
            for expert in numbers:
                inner = reader.matrix(w_in, (ffns.rows, ffns.width), entry.bits, expert)
                outer = reader.matrix(w_out, (ffns.width, ffns.expert_width), entry.bits, expert)
                yield tile_expert(inner, outer, ffns.gated)


def _remarks(planned: Iterable[Planned], reader: GroupReader, source: Source) -> Iterator[str]:
    """What a user should know: what was kept exactly, rounded twice, or padded."""
    for kind, count in _kinds(source, reader.exact).items():
        yield f"{_tensors(count)} of {kind} carried over exactly"
    for bits in (4, 8):
        again = (name for name, own in reader.requantised.items() if own == bits)
        for kind, count in _kinds(source, again).items():
            yield f"{_tensors(count)} of {kind} unpacked and quantised again in {bits} bits"
    quantised = source.config.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method")
        yield f"weights of quant_method {method} were unpacked and quantised again"
    padded = [(one, one.padded) for one in planned if one.padded is not None]
    if padded:
        first, (width, to) = padded[0]
        yield (
            f"{_tensors(len(padded))} of a width that groups of 32 do not divide, such as "
            f"{first.name}, padded with zeros, there from {width} to {to}"
        )


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' * (count != 1)}"


def _kinds(source: Source, names: Iterable[str]) -> Counter[str]:
    return Counter(source.tensors[name].dtype for name in names)
