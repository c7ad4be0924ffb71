"""Measures the cost of quantisation: perplexity on real text with weights of 16, 8 and 4 bits."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mixtura.bench.rounding import round_by_llama_cpp, unpack_into
from mixtura.bench.text_loss import TextLoss, text_loss
from mixtura.bench.windows import Windows, windows
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.model_kind import what_is
from mixtura.checkpoints.open_model import open_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.data import Document, Skipped, StdlibSource, TextSource
from mixtura.data.split import split
from mixtura.errors import ConfigError
from mixtura.kernels.packed.groups import Bits
from mixtura.kernels.packed.linear import Arithmetic, arithmetic_of
from mixtura.kernels.phase import Phase, in_phase
from mixtura.models import LanguageModel
from mixtura.progress import Progress, silent
from mixtura.runs.folder import RunFolder

Precision = Literal[16, 8, 4]
_PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """The text, and the versions of the model to measure."""

    bits: tuple[Precision, ...] = (16, 8, 4)
    text: Path | None = None
    """a file or a folder; None: the held-out text of a run, or else Python's standard library"""
    tokens: int = 16384
    length: int | None = None
    """tokens of a window; None: 512, or the model's context if the context is shorter"""
    head_bits: Bits | None = None
    """bits of the head's and the embedding's weights; None: the bits of the other weights"""
    peer: bool = False
    """whether to measure the rounding of llama.cpp too"""


@dataclass(frozen=True, slots=True)
class QualityRow:
    """The results of one version of the model, that is, of its weights and its arithmetic."""

    name: str
    bits: Precision
    arithmetic: Arithmetic
    """the arithmetic of products with packed weights; all other products are fp32"""
    bytes: int
    perplexity: float
    bits_per_byte: float
    ratio: float
    """the version's perplexity divided by the perplexity of the 16-bit version"""


@dataclass(frozen=True, slots=True)
class Quality:
    """The results of all versions; the first row is the 16-bit version."""

    model: str
    text: str
    windows: int
    length: int
    head_bits: Bits | None
    predicted: int
    """the number of predicted tokens"""
    rows: tuple[QualityRow, ...]
    unchecked: tuple[str, ...] = ()
    """parts of the weights without a digest"""

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def bench_quality(
    model: str | Path, options: QualityOptions, progress: Progress = silent, *, verify: bool = False
) -> Quality:
    """Pack the model into temporary folders, and measure every version on the same text.

    The 16-bit version is the model before quantisation, with weights as bf16 and products in fp32.
    The digests of its files are compared during the measurement, or before it if `verify` is True.
    Raises ConfigError, CheckpointError or DataError for a model or a text that cannot be measured.
    """
    path = folder_of(str(model))
    if what_is(path) == "packed":
        raise ConfigError(
            f"{model}: is packed already, and what packing cost it can no longer be seen; give the "
            "model that it was packed from"
        )
    text, documents = _text_of(path, options.text)
    opened = open_model(path, "bfloat16", wait=verify)
    check = opened.check
    context = opened.decoder.config.context
    length = min(512, context) if options.length is None else options.length
    opened.decoder.check_length(length)
    read = windows(documents, opened.tokenizer, length, options.tokens)
    measure = _Measurement(path, read, options.head_bits, progress)
    measure.in_sixteen_bits(opened.decoder)
    del opened
    for bits in options.bits:
        if bits == 16:
            continue
        if options.peer:
            measure.by_llama_cpp(bits)
        measure.packed(bits)
    check.finish()
    rows = tuple(measure.rows)
    return Quality(
        str(model),
        text,
        len(read.token_WS),
        length,
        options.head_bits,
        read.predicted,
        rows,
        check.unchecked,
    )


class _Measurement:
    """Measures versions one after another, and compares each version with the first one."""

    def __init__(
        self, path: Path, text: Windows, head_bits: Bits | None, progress: Progress
    ) -> None:
        self._path, self._text = path, text
        self._head_bits: Bits | None = head_bits
        self._progress = progress
        self.rows: list[QualityRow] = []

    def in_sixteen_bits(self, model: LanguageModel) -> None:
        size = 2 * sum(parameter.numel() for parameter in model.parameters())
        self._add("16 bits", 16, "fp32", size, self._loss(model.float(), "16 bits"))

    def by_llama_cpp(self, bits: Bits) -> None:
        name = f"{'Q4_0' if bits == 4 else 'Q8_0'} (llama.cpp's rule), weights alone"
        model = self._plain()
        progress = partial(self._progress, f"rounding, {name}")
        size = round_by_llama_cpp(model, bits, self._head_bits, progress)
        self._add(name, bits, "fp32", size, self._loss(model, name))

    def packed(self, bits: Bits) -> None:
        """Measure the packed weights in a plain model, then the packed model in each phase."""
        with TemporaryDirectory() as folder:
            out = pack_model(
                self._path,
                Path(folder, "packed"),
                bits,
                head_bits=self._head_bits,
                progress=partial(self._progress, f"packing in {bits} bits"),
            )
            model = open_model(out.path, wait=False).decoder
            name, plain = f"{bits} bits, weights alone", self._plain()
            unpack_into(plain, model)
            self._add(name, bits, "fp32", out.bytes, self._loss(plain, name))
            del plain
            for phase in _PHASES:
                name = f"{bits} bits, {phase}"
                with in_phase(phase):
                    self._add(name, bits, arithmetic_of(phase), out.bytes, self._loss(model, name))

    def _plain(self) -> LanguageModel:
        # The digests need no second comparison: `bench_quality` has opened the model before.
        return open_model(self._path, "bfloat16", wait=False).decoder.float()

    def _loss(self, model: LanguageModel, name: str) -> TextLoss:
        return text_loss(model, self._text, partial(self._progress, f"reading, {name}"))

    def _add(
        self,
        name: str,
        bits: Precision,
        arithmetic: Arithmetic,
        size: int,
        found: TextLoss,
    ) -> None:
        whole = self.rows[0].perplexity if self.rows else found.perplexity
        ratio = found.perplexity / whole
        row = QualityRow(name, bits, arithmetic, size, found.perplexity, found.bits_per_byte, ratio)
        self.rows.append(row)


def _text_of(path: Path, text: Path | None) -> tuple[str, Iterable[Document | Skipped]]:
    """The text's name, and its documents."""
    if text is not None:
        return str(text), TextSource(kind="text", paths=(str(text),)).read()
    if what_is(path) == "run":
        recipe = RunFolder(path).recorded()
        assert recipe is not None, "it is a run"
        data = recipe.data
        readable = (one for one in data.source.read() if isinstance(one, Document))
        sides = split(readable, data.heldout, data.seed)
        return "held out from its training", (one for side, one in sides if side == "heldout")
    return "Python's standard library", StdlibSource().read()
