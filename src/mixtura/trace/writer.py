"""Writes trace files in bounded memory while a model runs."""

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
from mixtura.trace.columns import (
    DOMAINS_KEY,
    dictionary_columns,
    float_columns,
    schema_of,
    to_arrow,
)
from mixtura.trace.meta import TraceMeta

# The limits of a row group, which is held in memory until it is complete.
_GROUP_BYTES = 2**25
_GROUP_TOKENS = 2**15


@contextmanager
def write_trace(path: Path, meta: TraceMeta) -> "Iterator[TraceWriter]":
    """Yield a writer, whose tokens become the file `path` when the block ends without error.

    After an error, `path` is unchanged. Raises StorageError if the file system refuses.
    """
    with atomic_write(path) as handle:
        writer = TraceWriter(handle, meta)
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.abandon()
            raise


class TraceWriter:
    """Appends tokens to a trace file. At most `group_tokens` tokens are held in memory."""

    def __init__(self, handle: BinaryIO, meta: TraceMeta) -> None:
        self.meta = meta
        self.group_tokens = max(1, min(_GROUP_TOKENS, _GROUP_BYTES // bytes_in_memory(meta)))
        self.domains: list[str] = []
        self.tokens = 0
        """the number of tokens appended so far"""
        self._kept: list[pa.RecordBatch] = []
        self._file = _parquet(handle, meta)

    @property
    def kept(self) -> int:
        """The number of tokens in memory that are not in the file yet."""
        return sum(len(part) for part in self._kept)

    def domain_number(self, name: str) -> int:
        """The number of a domain for `TraceBatch.domain_T`; a new name gets the next number."""
        if name not in self.domains:
            self.domains.append(name)
        return self.domains.index(name)

    def append(self, batch: TraceBatch) -> None:
        """Add tokens. The arrays are copied, so the caller may overwrite them afterwards.

        If the arrays do not fit the trace or each other, raises DataError and adds nothing.
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
        """Write the remaining tokens and the names of domains, and close the file."""
        if self._kept:
            self._flush()
        self._file.add_key_value_metadata({DOMAINS_KEY: json.dumps(self.domains)})
        self._file.close()

    def abandon(self) -> None:
        """Close the file after a failure; a further error of Parquet is ignored."""
        self._kept.clear()
        with suppress(Exception):
            self._file.close()
        # If close() failed, Arrow would call it again at garbage collection and print a warning.
        self._file.is_open = False

    def _flush(self) -> None:
        # Earlier batches have dictionaries without the domains that were added later.
        table = pa.Table.from_batches(self._kept).unify_dictionaries()
        self._kept.clear()
        self._file.write_table(table, row_group_size=self.group_tokens)


def _parquet(handle: BinaryIO, meta: TraceMeta) -> pq.ParquetWriter:
    # Two options below also accept lists of column names, which pyarrow's type stubs do not state.
    by_dictionary: Any = dictionary_columns(meta)
    by_byte: Any = float_columns(meta)
    return pq.ParquetWriter(
        handle,
        schema_of(meta),
        compression="zstd",
        compression_level=1,
        use_dictionary=by_dictionary,
        use_byte_stream_split=by_byte,
        column_encoding={"position": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    )


def bytes_in_memory(meta: TraceMeta) -> int:
    """Bytes in memory of one token with `top_k` experts in each layer."""
    width = {None: 0, "float16": 2, "float32": 4}[meta.probabilities]
    # 4 bytes for each of the token's four columns, for each of a layer's two offsets, and for the
    # expert and the weight of each row.
    return 16 + sum(8 + 8 * layer.top_k + width * layer.num_experts for layer in meta.layers)
