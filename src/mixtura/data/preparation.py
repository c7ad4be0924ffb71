"""Packs the documents of a source into a corpus on disk, which later calls open again."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from heapq import heappop, heappush
from pathlib import Path

from mixtura.data.config import DataConfig
from mixtura.data.corpus_writer import DomainNumbers, SideWriter
from mixtura.data.documents import Document, Skipped, Source
from mixtura.data.split import SIDES, Side, share, split
from mixtura.data.token_file import FORMAT, META, Corpus, CorpusMeta
from mixtura.errors import DataError, StorageError
from mixtura.files import atomic_folder
from mixtura.progress import Progress, silent
from mixtura.tokenizers.tokenizer import GivenConfig, Tokenizer

# The most characters and documents that are encoded together. They are enough to use all cores,
# and need little memory.
_CHUNK_CHARACTERS = 2**20
_CHUNK_DOCUMENTS = 1024
# The most skipped items whose names are kept; a dataset may have millions of empty rows.
_NAMED = 1000


def prepare(
    config: DataConfig,
    cache_dir: Path,
    progress: Progress = silent,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Open the corpus that `config` describes, and pack it into `cache_dir` first if necessary.

    `tokenizer` is used only if the config's tokenizer is of the kind `given`. A packed corpus is
    used again as long as config and source do not change. Raises DataError if the source has no
    readable text or a packed file is damaged, and StorageError if files cannot be written.
    """
    folder = cache_dir / f"{config.source.kind}-{_key(config)}"
    if not folder.exists():
        try:
            with atomic_folder(folder) as partial:
                _pack(config, partial, progress, tokenizer)
        except StorageError:
            # Another process may have packed the same corpus meanwhile.
            if not folder.exists():
                raise
    return Corpus.open(folder)


def _key(config: DataConfig) -> str:
    parts = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "source": config.source.fingerprint(),
        "tokenizer": config.tokenizer.fingerprint(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _pack(config: DataConfig, folder: Path, progress: Progress, given: Tokenizer | None) -> None:
    if isinstance(config.tokenizer, GivenConfig) and given is not None:
        tokenizer = given
    else:
        tokenizer = config.tokenizer.build(lambda limit: _training_text(config, limit, progress))
    tokenizer.save(folder)
    source_pass = _SourcePass(config, "packing", progress)
    numbers = DomainNumbers()
    with ExitStack() as stack:
        writers = {
            side: stack.enter_context(SideWriter(folder, side, tokenizer, numbers))
            for side in SIDES
        }
        for chunk in _chunks(source_pass.documents()):
            encoded = tokenizer.encode_batch([document.text for _, document in chunk])
            for (side, document), tokens in zip(chunk, encoded, strict=True):
                writers[side].append(document, tokens)
    meta = CorpusMeta(
        format=FORMAT,
        digest=_digest(folder, numbers.names),
        vocabulary=tokenizer.vocabulary,
        domains=numbers.names,
        train=writers["train"].meta(),
        heldout=writers["heldout"].meta(),
        duplicates=source_pass.duplicates,
        skipped_count=source_pass.skipped_count,
        skipped=tuple((one.name, one.reason) for one in source_pass.skipped),
    )
    (folder / META).write_text(meta.model_dump_json(indent=1) + "\n", encoding="utf-8")


class _SourcePass:
    """Reads a source once: yields usable documents with their sides, and counts all others."""

    def __init__(self, config: DataConfig, stage: str, progress: Progress) -> None:
        self._config = config
        self._stage = stage
        self._progress = progress
        self.duplicates = 0
        self.skipped_count = 0
        self.skipped: list[Skipped] = []

    def documents(self) -> Iterator[tuple[Side, Document]]:
        """Yield usable documents with their sides. Raises DataError if there are fewer than two."""
        return split(self._usable(), self._config.heldout, self._config.seed)

    def _usable(self) -> Iterator[Document]:
        """Yield documents that are not skipped and do not repeat an earlier document's text."""
        source: Source = self._config.source
        total = source.size()
        done = 0
        seen: set[bytes] = set()
        for item in source.read():
            if isinstance(item, Skipped):
                self._skip(item)
                continue
            try:
                raw = item.text.encode("utf-8")
            except UnicodeEncodeError as error:
                self._skip(Skipped(item.name, f"half a surrogate pair at {error.start}"))
                continue
            done += len(raw) if source.unit == "bytes" else 1
            self._progress(self._stage, min(done, total), total)
            digest = hashlib.blake2b(raw, digest_size=16).digest()
            if digest in seen:
                self.duplicates += 1
                continue
            seen.add(digest)
            yield item
        # `done` does not count skipped documents, so the progress is completed here.
        self._progress(self._stage, total, total)
        if not seen:
            raise DataError(f"data.source.kind={source.kind}: no text is left; {self._skips()}")

    def _skip(self, skipped: Skipped) -> None:
        self.skipped_count += 1
        if len(self.skipped) < _NAMED:
            self.skipped.append(skipped)

    def _skips(self) -> str:
        if not self.skipped:
            return "it has no documents at all"
        first = self.skipped[0]
        return f"skipped {self.skipped_count}, the first being {first.name}: {first.reason}"


def _chunks(
    documents: Iterator[tuple[Side, Document]],
) -> Iterator[list[tuple[Side, Document]]]:
    chunk: list[tuple[Side, Document]] = []
    characters = 0
    for side, document in documents:
        chunk.append((side, document))
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS or len(chunk) >= _CHUNK_DOCUMENTS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _training_text(config: DataConfig, limit: float, progress: Progress) -> Iterator[str]:
    """Select a sample of the training documents, and return its texts in the source's order.

    The sample has at most `limit` bytes, and is selected by a hash of the documents' names.
    """
    heap: list[tuple[float, int, bytes]] = []
    total = 0
    source_pass = _SourcePass(config, "sampling for the tokenizer", progress)
    for number, (side, document) in enumerate(source_pass.documents()):
        if side == "train":
            raw = document.text.encode()
            heappush(heap, (-share(document.name, "sample"), number, raw))
            total += len(raw)
            # At least one document is kept, even if it is larger than the limit.
            while total > limit and len(heap) > 1:
                total -= len(heappop(heap)[2])
    progress("training the tokenizer", 0, 0)
    return (raw.decode() for _, _, raw in sorted(heap, key=lambda entry: entry[1]))


def _digest(folder: Path, domains: tuple[str, ...]) -> str:
    """Return a SHA-256 of the domains' names, and of each file's name and content."""
    digest = hashlib.sha256(json.dumps(domains).encode())
    for path in sorted(folder.iterdir()):
        with path.open("rb") as handle:
            digest.update(path.name.encode() + hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
