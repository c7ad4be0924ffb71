"""Writing a trace while a model runs, in bounded memory.

T tokens, N rows of a layer, E experts.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixtura.files import atomic_write
from mixtura.trace.batch import TraceBatch
from mixtura.trace.check import check_batch
from mixtura.trace.columns import DOMAINS_KEY, few_valued, fractions, schema_of, to_arrow
from mixtura.trace.meta import TraceMeta

# A part of the file is held in memory until it is complete; Parquet's own buffers come on top.
_GROUP_BYTES = 2**25
_GROUP_TOKENS = 2**15


@contextmanager
def write_trace(path: Path, meta: TraceMeta) -> "Iterator[TraceWriter]":
    """A writer whose tokens become the file `path` when the block ends without error.

    The file appears whole or not at all. Raises StorageError if the file system refuses.
    """
    with atomic_write(path) as handle:
        writer = TraceWriter(handle, meta)
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.give_up()
            raise


class TraceWriter:
    """Appends tokens to a trace. At most `group_tokens` of them are held in memory."""

    def __init__(self, handle: BinaryIO, meta: TraceMeta) -> None:
        self.meta = meta
        self.group_tokens = max(1, min(_GROUP_TOKENS, _GROUP_BYTES // bytes_in_memory(meta)))
        self.domains: list[str] = []
        self.tokens = 0
        """appended so far"""
        self._kept: list[pa.RecordBatch] = []
        self._file = _parquet(handle, meta)

    @property
    def kept(self) -> int:
        """Tokens in memory, not yet in the file."""
        return sum(len(part) for part in self._kept)

    def domain_number(self, name: str) -> int:
        """The number of a domain, as `TraceBatch.domain_T` has it; a new name gets the next."""
        if name not in self.domains:
            self.domains.append(name)
        return self.domains.index(name)

    def append(self, batch: TraceBatch) -> None:
        """Add tokens; the arrays may be used again afterwards.

        Raises DataError, and adds nothing, where they do not fit the trace or each other.
        """
        check_batch(batch, self.meta, len(self.domains))
        done = 0
        while done < len(batch):
            end = min(len(batch), done + self.group_tokens - self.kept)
            part = batch.take(np.arange(done, end)) if end - done < len(batch) else batch
            self._kept.append(to_arrow(part, self.meta, self.domains))
            done = end
            if self.kept == self.group_tokens:
                self._flush()
        self.tokens += len(batch)

    def finish(self) -> None:
        """Write what is left, and the file's end."""
        if self._kept:
            self._flush()
        self._file.add_key_value_metadata({DOMAINS_KEY: json.dumps(self.domains)})
        self._file.close()

    def give_up(self) -> None:
        """Let go of the handle, whatever has become of it."""
        self._kept.clear()
        with suppress(Exception):
            self._file.close()
        # Where closing failed, Arrow would try again when it is collected, and warn.
        self._file.is_open = False

    def _flush(self) -> None:
        # A name that came later is not in the dictionaries of earlier parts.
        table = pa.Table.from_batches(self._kept).unify_dictionaries()
        self._kept.clear()
        self._file.write_table(table, row_group_size=self.group_tokens)


def _parquet(handle: BinaryIO, meta: TraceMeta) -> pq.ParquetWriter:
    # Both of these take names of columns as well, which the stubs do not know.
    small_numbers: Any = few_valued(meta)
    by_byte: Any = fractions(meta)
    return pq.ParquetWriter(
        handle,
        schema_of(meta),
        compression="zstd",
        compression_level=1,
        use_dictionary=small_numbers,
        use_byte_stream_split=by_byte,
        column_encoding={"position": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    )


def bytes_in_memory(meta: TraceMeta) -> int:
    """Of a token with `top_k` experts in each layer."""
    width = {None: 0, "float16": 2, "float32": 4}[meta.probabilities]
    # Per layer, offsets of two lists, and per row an expert and a weight, 4 bytes each.
    return 16 + sum(8 + 8 * layer.top_k + width * layer.num_experts for layer in meta.layers)
