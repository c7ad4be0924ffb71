"""Reads trace files, whole or in part, as arrays.

T tokens, T1 is T + 1; N rows of a layer, one for each expert that a token chose.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mixtura.errors import ConfigError, DataError
from mixtura.json_reader import parse_json, parse_object
from mixtura.regular_files import check_regular
from mixtura.trace.batch import ABSENT, LayerRows, TraceBatch
from mixtura.trace.columns import (
    DOMAINS_KEY,
    META_KEY,
    TOKEN_COLUMNS,
    columns_of,
    from_arrow,
    schema_of,
)
from mixtura.trace.meta import FORMAT, TraceMeta

_BATCH = 8192


class TraceReader:
    """A trace file that is open for reading, until its `with` block ends or `close` is called."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if the file is no trace, is damaged, or has a newer format."""
        self.path = path
        try:
            check_regular(path, DataError)
        except FileNotFoundError:
            raise DataError(f"{path}: no such trace file; 'mixtura trace' writes one") from None
        with self._damage("is no Parquet file, or is truncated"):
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        try:
            self.meta = self._read_meta()
            self.domains = self._read_domains()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        """The number of tokens in the file."""
        return self._file.metadata.num_rows

    def batches(
        self,
        layers: Sequence[int] | None = None,
        *,
        tokens: int = _BATCH,
        probabilities: bool = True,
    ) -> Iterator[TraceBatch]:
        """Yield all tokens in the order of the file, at most `tokens` in a batch.

        Only `layers` (None: all) are read from disk; `probabilities=False` skips probabilities.
        Raises DataError for a layer that was not recorded, and for a damaged file.
        """
        if tokens < 1:
            raise DataError(f"tokens={tokens} must be 1 or more")
        yield from self._read(layers, probabilities, tokens, range(self._file.num_row_groups))

    def sequences(
        self, numbers: Sequence[int], layers: Sequence[int] | None = None
    ) -> list[TraceBatch]:
        """One batch for each sequence in `numbers`: its tokens in the order of their positions.

        Probabilities are not read. Raises DataError for a sequence that is not in the trace, or
        whose positions have gaps.
        """
        distinct = np.unique(np.asarray(numbers, np.int64))
        parts: list[TraceBatch] = []
        for batch in self._read(layers, False, _BATCH, self._groups_with(distinct)):
            found_T = np.isin(batch.sequence_T, distinct)
            if found_T.any():
                parts.append(batch.take(np.flatnonzero(found_T)))
        return [self._ordered(parts, number) for number in numbers]

    def experts_by_token(
        self, layers: Sequence[int] | None = None
    ) -> Iterator[Mapping[int, NDArray[np.int32]]]:
        """For each token, yield the experts that computed the token, by the layer's number.

        Benchmarks and simulated caches take this input. A token's first choice comes first; dropped
        rows are left out.
        """
        for batch in self.batches(layers, probabilities=False):
            split = {n: _computed(rows) for n, rows in batch.layers.items()}
            for token in range(len(batch)):
                yield {number: experts[token] for number, experts in split.items()}

    def _read(
        self,
        layers: Sequence[int] | None,
        probabilities: bool,
        tokens: int,
        groups: Sequence[int],
    ) -> Iterator[TraceBatch]:
        chosen = self.meta.among(None if layers is None else tuple(layers))
        stored = probabilities and self.meta.probabilities is not None
        columns = [*TOKEN_COLUMNS]
        for layer in chosen:
            columns += columns_of(layer.layer, probabilities=stored)
        if not groups:
            # pyarrow 18 reports a file without row groups as damaged.
            return
        with self._damage("is damaged"):
            for part in self._file.iter_batches(tokens, groups, columns):
                yield from_arrow(part, chosen, self.domains)

    def _groups_with(self, distinct: NDArray[np.int64]) -> list[int]:
        """The row groups that may contain one of the sequences, according to their statistics."""
        column = TOKEN_COLUMNS.index("sequence")
        found: list[int] = []
        for group in range(self._file.num_row_groups):
            span = self._file.metadata.row_group(group).column(column).statistics
            if span is not None and span.has_min_max:
                possible = bool(((distinct >= span.min) & (distinct <= span.max)).any())
            else:
                possible = True
            if possible:
                found.append(group)
        return found

    def _ordered(self, parts: Sequence[TraceBatch], number: int) -> TraceBatch:
        own_parts = [part.take(np.flatnonzero(part.sequence_T == number)) for part in parts]
        if not sum(map(len, own_parts)):
            raise DataError(f"{self.path}: has no sequence {number}")
        whole = TraceBatch.joined(own_parts)
        whole = whole.take(np.argsort(whole.position_T, kind="stable"))
        step_T = np.diff(whole.position_T)
        if (step_T != 1).any():
            position = whole.position_T[int((step_T != 1).argmax())]
            raise DataError(
                f"{self.path}: sequence {number} does not go on by one after position {position}"
            )
        return whole

    def _read_meta(self) -> TraceMeta:
        tree = parse_object(self._stated(META_KEY), self.path, DataError)
        if "format" not in tree:
            raise DataError(f"{self.path}: states no format of a trace; it is damaged")
        stated = tree["format"]
        if isinstance(stated, int) and stated > FORMAT:
            raise DataError(
                f"{self.path}: is a trace of format {stated}, and this version of Mixtura reads "
                f"formats up to {FORMAT}; upgrade Mixtura"
            )
        try:
            meta = TraceMeta.parse(tree, str(self.path))
        except ConfigError as error:
            raise DataError(str(error)) from error
        self._check_columns(meta)
        return meta

    def _read_domains(self) -> tuple[str, ...]:
        """The names of the domains, in the order of their numbers.

        If another program filtered the file, the list of names is missing. The domains are then
        numbered in the order of their first use.
        """
        if DOMAINS_KEY.encode() not in self._file.metadata.metadata:
            with self._damage("is damaged"):
                parts = self._file.iter_batches(columns=["domain"])
                names = [name for part in parts for name in part.column(0).dictionary.to_pylist()]
            return tuple(dict.fromkeys(names))
        names = parse_json(self._stated(DOMAINS_KEY), self.path, DataError)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.path}: states no names of domains; it is damaged")
        return tuple(names)

    def _check_columns(self, meta: TraceMeta) -> None:
        found = self._file.schema_arrow
        for field in schema_of(meta):
            if field.name not in found.names:
                raise DataError(f"{self.path}: the column {field.name} is missing")
            if found.field(field.name).type != field.type:
                raise DataError(
                    f"{self.path}: the column {field.name} holds {found.field(field.name).type}, "
                    f"where a trace has {field.type}"
                )

    def _stated(self, key: str) -> bytes:
        """The file's metadata under `key`; a file without it is no trace and raises DataError."""
        metadata = self._file.metadata.metadata or {}
        if key.encode() not in metadata:
            raise DataError(
                f"{self.path}: is a Parquet file, but no routing trace; 'mixtura trace' writes one"
            )
        return metadata[key.encode()]

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Convert an error of Arrow into a DataError that names the file."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self.path}: {what} ({reason:.120}); record it anew") from error


def _computed(rows: LayerRows) -> list[NDArray[np.int32]]:
    """For each token, the experts that computed it."""
    kept_N = rows.computed_N != ABSENT
    kept_T1 = np.concatenate([[0], np.cumsum(kept_N)])[rows.start_T1]
    return np.split(rows.computed_N[kept_N], kept_T1[1:-1])
