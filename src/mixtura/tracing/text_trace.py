"""Runs a model over texts, and writes each token's routing to a trace."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Self

import torch

from mixtura.data import Document, Skipped
from mixtura.errors import DataError
from mixtura.integrity import Check
from mixtura.models import LanguageModel
from mixtura.progress import Progress, silent
from mixtura.tokenizers import Tokenizer
from mixtura.trace import ABSENT, LayerRows, TraceMeta, TraceWriter, write_trace
from mixtura.tracing.model_trace import record
from mixtura.tracing.record import Recorder

RoutingOf = Callable[[Sequence[int]], Mapping[int, LayerRows]]
"""a function that routes the tokens of a new sequence, and returns the rows of each MoE layer by
the layer's number"""


@dataclass(frozen=True, slots=True)
class Texts:
    """The documents to trace. A document without a domain has an empty string as its domain."""

    documents: Iterable[Document | Skipped]
    bytes: int
    """the approximate size of all documents, for the progress display"""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Make documents without a domain."""
        documents = [Document(f"text {number}", "", text) for number, text in enumerate(texts)]
        return cls(documents, sum(len(text.encode()) for text in texts))


@dataclass(frozen=True, slots=True)
class Traced:
    """A summary of a trace that was written."""

    tokens: int
    sequences: int
    layers: tuple[int, ...]
    """the numbers of the MoE layers"""
    domains: tuple[str, ...]
    bytes: int
    """the size of the trace file"""
    seconds: float
    """the time of reading, routing and writing"""
    skipped: tuple[Skipped, ...]
    """files that were left out"""


def trace_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Texts,
    out: Path,
    meta: TraceMeta,
    limit: int | None = None,
    progress: Progress = silent,
    check: Check | None = None,
    routing_of: RoutingOf | None = None,
) -> Traced:
    """Run the model over the texts, and write the routing of each token to `out`.

    `routing_of` replaces the model's own forward pass. A document longer than the model's context
    becomes several sequences. `limit` is the most tokens to trace. The file `out` appears only when
    the trace is complete and `check` has found no difference in the model's files. Raises DataError
    if there is no text to trace, and StorageError if the disk refuses.
    """
    began = perf_counter()
    reading = _Reading(model, tokenizer, texts, limit, progress)
    was_training = model.training
    model.eval()
    try:
        with write_trace(out, meta) as writer:
            reading.run(writer, routing_of)
            tokens, domains = writer.tokens, tuple(writer.domains)
            if check is not None:
                check.finish()
    finally:
        model.train(was_training)
    return Traced(
        tokens=tokens,
        sequences=reading.sequences,
        layers=tuple(meta.numbers),
        domains=domains,
        bytes=out.stat().st_size,
        seconds=perf_counter() - began,
        skipped=tuple(reading.skipped),
    )


class _Reading:
    """One pass over the texts."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        texts: Texts,
        limit: int | None,
        progress: Progress,
    ) -> None:
        self._model, self._tokenizer, self._texts = model, tokenizer, texts
        self._left, self._limit, self._progress = limit, limit, progress
        self.sequences = 0
        self.skipped: list[Skipped] = []

    def run(self, writer: TraceWriter, routing_of: RoutingOf | None) -> None:
        if routing_of is not None:
            recorder = Recorder(writer)
            self._read(recorder, lambda tokens: _take(recorder, tokens, routing_of(tokens)))
            return
        device = self._model.device
        with record(self._model, writer) as recorder, torch.inference_mode():
            self._read(recorder, lambda tokens: self._model(torch.tensor([tokens], device=device)))

    def _read(self, recorder: Recorder, read: Callable[[list[int]], object]) -> None:
        for domain, tokens in self._windows():
            recorder.domain = recorder.writer.domain_number(domain) if domain else ABSENT
            read(tokens)
            self.sequences += 1
        if self.sequences == 0:
            first = f"; {self.skipped[0].name}: {self.skipped[0].reason}" if self.skipped else ""
            raise DataError(f"there is no text to trace{first}")

    def _windows(self) -> Iterator[tuple[str, list[int]]]:
        """Yield the domain and the tokens of each sequence."""
        window, done = self._model.config.context, 0
        for document in self._texts.documents:
            if isinstance(document, Skipped):
                self.skipped.append(document)
                continue
            done += len(document.text.encode())
            tokens = [*self._tokenizer.begin, *self._tokenizer.encode(document.text)]
            for start in range(0, len(tokens), window):
                part = tokens[start : start + window][: self._left]
                if not part:
                    return
                yield document.domain, part
                self._report(len(part), done)

    def _report(self, tokens: int, done: int) -> None:
        if self._left is None or self._limit is None:
            self._progress("tracing", min(done, self._texts.bytes), self._texts.bytes)
            return
        self._left -= tokens
        self._progress("tracing", self._limit - self._left, self._limit)


def _take(recorder: Recorder, tokens: list[int], routing: Mapping[int, LayerRows]) -> None:
    recorder.begin(1)
    for layer in recorder.writer.meta.layers:
        if layer.layer in routing:
            recorder.take_rows(layer.layer, layer.num_experts, routing[layer.layer])
    recorder.end_pass(torch.tensor([tokens]))


def digest_of(tokenizer: Tokenizer) -> str:
    """SHA-256 of the files that the tokenizer saves, which determine the tokenizer completely."""
    digest = hashlib.sha256()
    with TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                content = hashlib.sha256(path.read_bytes()).digest()
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()
