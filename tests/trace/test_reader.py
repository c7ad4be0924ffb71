"""A trace read in part; and files that are none, damaged, or newer than this version."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixtura.errors import DataError
from mixtura.trace import (
    LayerRows,
    TraceBatch,
    TracedLayer,
    TraceMeta,
    TraceReader,
    TraceWriter,
    write_trace,
)

Make = Callable[..., TraceBatch]
Write = Callable[..., Path]
Same = Callable[[TraceBatch, TraceBatch], None]


@pytest.fixture
def path(tmp_path: Path, make_batch: Make, meta: TraceMeta) -> Path:
    """Of 40 tokens in 8 sequences, in parts of 12."""
    with write_trace(tmp_path / "t.parquet", meta) as writer:
        writer.group_tokens = 12
        writer.append(make_batch(40))
    return tmp_path / "t.parquet"


def test_selected_layers_alone_are_read(
    path: Path, make_batch: Make, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    whole = pq.ParquetFile.iter_batches

    def noted(file: pq.ParquetFile, tokens: int, groups: list[int], columns: list[str]):
        asked.append(columns)
        return whole(file, tokens, groups, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    with TraceReader(path) as reader:
        found = TraceBatch.joined(list(reader.batches([3], tokens=7)))
    assert not [name for name in asked[0] if name.startswith("layer_01")]
    expected = make_batch(40)
    rest = {3: expected.layers[3]}
    tokens = (expected.id_T, expected.position_T, expected.sequence_T, expected.domain_T)
    same(found, TraceBatch(*tokens, rest))


def test_a_layer_that_was_not_recorded_is_refused(path: Path) -> None:
    with TraceReader(path) as reader, pytest.raises(DataError, match=r"layer 2 .* layers 1, 3"):
        next(reader.batches([2]))


def test_sequences_are_read_by_number_and_position(
    path: Path, make_batch: Make, same: Same
) -> None:
    # Sequence 3 has tokens 15 to 19, sequence 1 tokens 5 to 9.
    expected = make_batch(40)
    with TraceReader(path) as reader:
        found = reader.sequences([3, 1])
    same(found[0], expected.take(np.arange(15, 20)))
    same(found[1], expected.take(np.arange(5, 10)))


def test_parts_of_the_file_without_the_sequence_are_not_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parts of 12 tokens hold sequences 0 to 2, 2 to 4, 4 to 7 and 7.
    asked: list[list[int]] = []
    whole = pq.ParquetFile.iter_batches

    def noted(file: pq.ParquetFile, tokens: int, groups: list[int], columns: list[str]):
        asked.append(groups)
        return whole(file, tokens, groups, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    with TraceReader(path) as reader:
        for number in (0, 2, 3, 7):
            reader.sequences([number])
    assert asked == [[0], [0, 1], [1], [2, 3]]


def test_tokens_of_several_sequences_in_turn_are_sorted_out(
    tmp_path: Path, make_batch: Make, write: Write, same: Same
) -> None:
    # As in generation: position 0 of both, then position 1 of both. Five sequences of five.
    expected = make_batch(25)
    turns = np.argsort(expected.position_T, kind="stable")
    with TraceReader(write(tmp_path / "g.parquet", expected.take(turns))) as reader:
        found = reader.sequences(range(5))
    same(TraceBatch.joined(found), expected)


def test_a_sequence_that_is_not_there_or_has_a_gap_is_refused(
    tmp_path: Path, path: Path, make_batch: Make, write: Write
) -> None:
    with TraceReader(path) as reader, pytest.raises(DataError, match="has no sequence 8"):
        reader.sequences([0, 8])
    gap = write(tmp_path / "gap.parquet", make_batch(5).take(np.array([0, 1, 3])))
    words = "sequence 0 does not go on by one after position 1"
    with TraceReader(gap) as reader, pytest.raises(DataError, match=words):
        reader.sequences([0])


def test_experts_token_by_token(tmp_path: Path, hand_written: TraceBatch, write: Write) -> None:
    # The last token's second choice was lost, and its first was computed.
    with TraceReader(write(tmp_path / "t.parquet", hand_written)) as reader:
        found = [
            {n: ids.tolist() for n, ids in token.items()} for token in reader.experts_by_token()
        ]
        first_layer = [token[1].tolist() for token in reader.experts_by_token([1])]
    assert found == [{1: [3, 0], 3: [7]}, {1: [2], 3: []}, {1: [1], 3: [0]}]
    assert first_layer == [[3, 0], [2], [1]]


def test_domains_keep_their_numbers_in_every_part(
    tmp_path: Path, make_batch: Make, meta: TraceMeta
) -> None:
    path = tmp_path / "t.parquet"
    with write_trace(path, meta) as writer:
        writer.group_tokens = 4
        for name in ("code", "prose", "code", "", "prose"):
            batch = make_batch(5)
            batch.domain_T[:] = writer.domain_number(name)
            batch.domain_T[0] = -1
            writer.append(batch)
    with TraceReader(path) as reader:
        assert reader.domains == ("code", "prose", "")
        found = np.concatenate([batch.domain_T for batch in reader.batches()]).reshape(5, 5)
    assert found.tolist() == [[-1, n, n, n, n] for n in (0, 1, 0, 2, 1)]
    # Other readers of Parquet see the names.
    assert pq.read_table(path)["domain"].to_pylist()[:6] == [None, *["code"] * 4, None]


def test_probabilities_are_read_or_left_out(tmp_path: Path, make_batch: Make, write: Write) -> None:
    layer = TracedLayer(layer=0, num_experts=5, top_k=2)
    meta = TraceMeta(model="m", vocabulary=9, layers=(layer,), probabilities="float16")
    batch = make_batch(6, meta)
    with TraceReader(write(tmp_path / "t.parquet", batch, meta)) as reader:
        (with_them,), (without,) = reader.batches(), reader.batches(probabilities=False)
    found_TE, expected_TE = with_them.layers[0].probs_TE, batch.layers[0].probs_TE
    assert found_TE is not None
    assert expected_TE is not None
    assert found_TE.dtype == np.float16
    assert np.array_equal(found_TE, expected_TE)
    assert without.layers[0].probs_TE is None


def test_missing_empty_and_other_files_are_refused(tmp_path: Path) -> None:
    empty, text, other = (tmp_path / name for name in ("empty", "text", "other"))
    empty.write_bytes(b"")
    text.write_text("id,position\n1,0\n", encoding="utf-8")
    pq.write_table(pa.table({"id": [1]}), other)
    for file, words in (
        (tmp_path / "none", "no such trace file; 'mixtura trace' writes one"),
        (tmp_path, "cannot be read, since it is a folder"),
        (empty, "is no Parquet file, or is truncated"),
        (text, "is no Parquet file, or is truncated"),
        (other, "is a Parquet file, but no routing trace"),
    ):
        with pytest.raises(DataError, match=words) as refusal:
            TraceReader(file)
        assert str(refusal.value).startswith(str(file))
        assert "\n" not in str(refusal.value)


def test_a_truncated_file_is_refused_at_any_length(path: Path) -> None:
    whole = path.read_bytes()
    for length in (1, 4, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is no Parquet file, or is truncated"):
            TraceReader(path)


def test_a_changed_byte_is_noticed_where_it_is_read(path: Path) -> None:
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    middle = column.dictionary_page_offset + column.total_compressed_size - 3
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with (
        TraceReader(path) as reader,
        pytest.raises(DataError, match=r"is damaged .*record it anew"),
    ):
        list(reader.batches())


def rewritten(path: Path, change: Callable[[dict], object]) -> Path:
    """The file with other words about itself."""
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    tree = json.loads(metadata[b"mixtura.trace"])
    change(tree)
    metadata[b"mixtura.trace"] = json.dumps(tree).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_a_newer_format_is_refused_by_its_number(path: Path) -> None:
    # What a later format means by its other keys is not for this version to judge.
    rewritten(path, lambda tree: tree.update(format=2, unheard_of=True))
    words = "is a trace of format 2, and this version of Mixtura reads formats up to 1; upgrade"
    with pytest.raises(DataError, match=words):
        TraceReader(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.pop("format"), "states no format of a trace"),
        (lambda tree: tree.update(format=0), "format"),
        (lambda tree: tree.update(vocabulary=0), "vocabulary"),
        (lambda tree: tree.update(unheard_of=1), "unknown key 'unheard_of'"),
        (lambda tree: tree["layers"].reverse(), r"layers=\[3, 1\] must be listed once each"),
        (lambda tree: tree["layers"][0].update(layer=0), "the column layer_00_experts is missing"),
        (
            lambda tree: tree.update(probabilities="float16"),
            "the column layer_01_probabilities is missing",
        ),
    ],
)
def test_words_that_do_not_fit_the_file_are_refused(
    path: Path, change: Callable[[dict], object], words: str
) -> None:
    with pytest.raises(DataError, match=words) as refusal:
        TraceReader(rewritten(path, change))
    assert str(path) in str(refusal.value)


def test_a_column_of_another_type_is_refused(path: Path) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index("layer_03_weights")
    wider = table["layer_03_weights"].cast(pa.list_(pa.float64()))
    pq.write_table(table.set_column(place, "layer_03_weights", wider), path)
    with pytest.raises(DataError, match=r"layer_03_weights holds list<.*double>, where"):
        TraceReader(path)


def test_lists_that_do_not_belong_together_are_refused(path: Path) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index("layer_03_weights")
    fewer = pa.array([[]] * len(table), pa.list_(pa.float32()))
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, fewer), path)
    words = "layer 3 has other numbers of weights than of experts"
    with TraceReader(path) as reader, pytest.raises(DataError, match=words):
        list(reader.batches())


def test_a_filtered_trace_is_a_trace(
    path: Path, tmp_path: Path, make_batch: Make, meta: TraceMeta, same: Same
) -> None:
    # Of 10 tokens of prose, then 10 of code, whoever filters keeps the code.
    with write_trace(path, meta) as writer:
        for name in ("prose", "code"):
            batch = make_batch(10)
            batch.domain_T[:] = writer.domain_number(name)
            writer.append(batch)
    kept = pq.read_table(path, filters=[("domain", "=", "code")])
    pq.write_table(kept, tmp_path / "code.parquet")
    with TraceReader(tmp_path / "code.parquet") as reader:
        (found,) = reader.batches()
        assert {reader.domains[number] for number in found.domain_T} == {"code"}
    found.domain_T[:] = batch.domain_T
    same(found, batch)


def test_rows_of_no_token_at_all(make_rows: Callable[..., LayerRows]) -> None:
    nothing = make_rows([[], []])
    assert nothing.count_T.tolist() == [0, 0]
    assert nothing.by_choice(nothing.chosen_N, 2, -1).tolist() == [[-1, -1]] * 2


def test_a_writer_counts_a_domain_once(tmp_path: Path, meta: TraceMeta) -> None:
    with write_trace(tmp_path / "t.parquet", meta) as writer:
        assert isinstance(writer, TraceWriter)
        assert [writer.domain_number(name) for name in "aba"] == [0, 1, 0]
