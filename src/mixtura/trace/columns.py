"""The columns of a trace file, and their conversion from arrays and to arrays.

T tokens, T1 is T + 1, E experts; N rows of a layer, one for each expert that a token chose.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mixtura.errors import DataError
from mixtura.trace.batch import ABSENT, LayerRows, TraceBatch
from mixtura.trace.meta import TracedLayer, TraceMeta

META_KEY = "mixtura.trace"
DOMAINS_KEY = "mixtura.trace.domains"

TOKEN_COLUMNS = ("id", "position", "sequence", "domain")

_ID = pa.int32()
_EXPERTS = pa.list_(pa.int32())
_WEIGHTS = pa.list_(pa.float32())
_DOMAIN = pa.dictionary(pa.int32(), pa.string())
_STORED = {"float16": pa.float16(), "float32": pa.float32()}
# In Parquet, the path to a list's values is the column's name with this suffix.
_VALUES = ".list.element"


def experts_of(layer: int) -> str:
    return f"layer_{layer:02}_experts"


def weights_of(layer: int) -> str:
    return f"layer_{layer:02}_weights"


def computed_by_of(layer: int) -> str:
    return f"layer_{layer:02}_computed_by"


def probabilities_of(layer: int) -> str:
    return f"layer_{layer:02}_probabilities"


def columns_of(layer: int, *, probabilities: bool) -> list[str]:
    columns = [experts_of(layer), weights_of(layer), computed_by_of(layer)]
    return [*columns, probabilities_of(layer)] if probabilities else columns


def schema_of(meta: TraceMeta) -> pa.Schema:
    fields = [pa.field(name, _ID, nullable=False) for name in TOKEN_COLUMNS[:3]]
    fields.append(pa.field("domain", _DOMAIN))
    for layer in meta.layers:
        fields += [
            pa.field(experts_of(layer.layer), _EXPERTS, nullable=False),
            pa.field(weights_of(layer.layer), _WEIGHTS, nullable=False),
            pa.field(computed_by_of(layer.layer), _EXPERTS),
        ]
        if meta.probabilities is not None:
            stored = pa.list_(_STORED[meta.probabilities], layer.num_experts)
            fields.append(pa.field(probabilities_of(layer.layer), stored, nullable=False))
    return pa.schema(fields, metadata={META_KEY: meta.model_dump_json()})


def dictionary_columns(meta: TraceMeta) -> list[str]:
    """Parquet's paths of columns that are dictionary-encoded: they have few distinct values."""
    numbers = [layer.layer for layer in meta.layers]
    lists = [name(number) for number in numbers for name in (experts_of, computed_by_of)]
    return ["id", "sequence", "domain", *(f"{name}{_VALUES}" for name in lists)]


def float_columns(meta: TraceMeta) -> list[str]:
    """Parquet's paths of floating-point columns, which compress better split into byte streams."""
    names = [weights_of(layer.layer) for layer in meta.layers]
    if meta.probabilities is not None:
        names += [probabilities_of(layer.layer) for layer in meta.layers]
    return [f"{name}{_VALUES}" for name in names]


def to_arrow(batch: TraceBatch, meta: TraceMeta, domains: Sequence[str]) -> pa.RecordBatch:
    """Copy a batch into an Arrow record batch; `check_batch` must have checked the batch."""
    number_T = pa.array(batch.domain_T, _ID, mask=batch.domain_T == ABSENT)
    columns: list[pa.Array] = [
        *(_copied(of_T, np.int32) for of_T in (batch.id_T, batch.position_T, batch.sequence_T)),
        pa.DictionaryArray.from_arrays(number_T, pa.array(domains, pa.string())),
    ]
    for layer in meta.layers:
        columns += _layer_to_arrow(batch.layers[layer.layer], layer, meta)
    return pa.RecordBatch.from_arrays(columns, schema=schema_of(meta))


def _layer_to_arrow(rows: LayerRows, layer: TracedLayer, meta: TraceMeta) -> list[pa.Array]:
    start_T1 = _copied(rows.start_T1, np.int32)
    chosen_N = _copied(rows.chosen_N, np.int32)
    columns = [
        pa.ListArray.from_arrays(start_T1, chosen_N, _EXPERTS),
        pa.ListArray.from_arrays(start_T1, _copied(rows.weight_N, np.float32), _WEIGHTS),
        _computed_by(rows),
    ]
    if meta.probabilities is not None:
        assert rows.probs_TE is not None, "checked by the writer"
        flat = _copied(rows.probs_TE.reshape(-1), np.dtype(meta.probabilities))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, layer.num_experts))
    return columns


def _computed_by(rows: LayerRows) -> pa.Array:
    """The column of the experts that computed each token.

    The entry is null if all experts that the token chose computed it, as in a dropless model.
    """
    changed_N = rows.computed_N != rows.chosen_N
    if not changed_N.any():
        return pa.nulls(len(rows), _EXPERTS)
    changed_T = np.zeros(len(rows), bool)
    changed_T[rows.token_N[changed_N]] = True
    kept_N = changed_T[rows.token_N]
    start_T1 = np.concatenate([[0], np.cumsum(np.where(changed_T, rows.count_T, 0))])
    return pa.ListArray.from_arrays(
        _copied(start_T1, np.int32),
        _copied(rows.computed_N[kept_N], np.int32),
        _EXPERTS,
        mask=pa.array(~changed_T),
    )


def _copied(values: np.ndarray, dtype: np.dtype | type) -> pa.Array:
    # Without a copy, Arrow would share the array's memory, and the caller may overwrite the array.
    return pa.array(np.array(values, dtype, copy=True))


def from_arrow(
    batch: pa.RecordBatch, layers: Sequence[TracedLayer], domains: Sequence[str]
) -> TraceBatch:
    """Convert an Arrow record batch to arrays.

    Raises DataError if the lists of a layer differ in length, or if `domains` lacks a domain.
    """
    return TraceBatch(
        batch.column("id").to_numpy(),
        batch.column("position").to_numpy(),
        batch.column("sequence").to_numpy(),
        _domain_numbers(batch.column("domain"), domains),
        {layer.layer: _layer_from_arrow(batch, layer) for layer in layers},
    )


def _domain_numbers(column: pa.DictionaryArray, domains: Sequence[str]) -> np.ndarray:
    if column.null_count == len(column):
        return np.full(len(column), ABSENT, np.int32)
    number_of = {name: number for number, name in enumerate(domains)}
    names = column.dictionary.to_pylist()
    if not number_of.keys() >= set(names):
        raise DataError(f"a domain of {names} is not among those stated, {list(domains)}")
    # Each record batch has its own dictionary, so its indices are mapped to those of `domains`. A
    # null gets the index of the extra last entry.
    name_numbers = [number_of[name] for name in names]
    known = np.array([*name_numbers, ABSENT], np.int32)
    return known[column.indices.fill_null(len(name_numbers)).to_numpy()]


def _layer_from_arrow(batch: pa.RecordBatch, layer: TracedLayer) -> LayerRows:
    number = layer.layer
    experts, weights = batch.column(experts_of(number)), batch.column(weights_of(number))
    start_T1 = _starts(experts)
    if not np.array_equal(start_T1, _starts(weights)):
        raise DataError(f"layer {number} has other numbers of weights than of experts")
    chosen_N = experts.flatten().to_numpy()
    probs_TE = None
    if probabilities_of(number) in batch.schema.names:
        flat = batch.column(probabilities_of(number)).flatten()
        probs_TE = flat.to_numpy(zero_copy_only=False).reshape(-1, layer.num_experts)
    computed_N = _computed_from_arrow(batch.column(computed_by_of(number)), chosen_N, start_T1)
    if computed_N is None:
        raise DataError(f"layer {number} has other numbers of computed_by than of experts")
    return LayerRows(start_T1, chosen_N, weights.flatten().to_numpy(), computed_N, probs_TE)


def _starts(lists: pa.ListArray) -> np.ndarray:
    offset_T1 = lists.offsets.to_numpy().astype(np.int64)
    return offset_T1 - offset_T1[0]


def _computed_from_arrow(
    lists: pa.ListArray, chosen_N: np.ndarray, start_T1: np.ndarray
) -> np.ndarray | None:
    """The expert that computed each row; None if the lists have another length than `chosen_N`."""
    if lists.null_count == len(lists):
        return chosen_N
    changed_T = lists.is_valid().to_numpy(zero_copy_only=False)
    changed_N = np.repeat(changed_T, np.diff(start_T1))
    changed = lists.flatten().to_numpy()
    if len(changed) != changed_N.sum():
        return None
    computed_N = chosen_N.copy()
    computed_N[changed_N] = changed
    return computed_N
