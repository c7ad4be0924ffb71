"""What is written is read back bit for bit, whatever it is; in bounded memory; whole or not at all.

T tokens, E experts, K choices at most.
"""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtura.errors import DataError, StorageError
from mixtura.trace import (
    ABSENT,
    LayerRows,
    TraceBatch,
    TracedLayer,
    TraceMeta,
    TraceReader,
    write_trace,
)
from mixtura.trace.meta import Probabilities

Make = Callable[..., TraceBatch]
Write = Callable[..., Path]
Same = Callable[[TraceBatch, TraceBatch], None]


def read_all(path: Path, tokens: int = 8192) -> TraceBatch:
    with TraceReader(path) as reader:
        return TraceBatch.joined(list(reader.batches(tokens=tokens)))


def test_three_tokens_by_hand(tmp_path: Path, hand_written: TraceBatch, write: Write) -> None:
    # Layer 1: token 0 has experts 3 and 0, token 1 has 2, token 2 has 1 and wished for 2 as well.
    path = write(tmp_path / "t.parquet", hand_written)
    found = read_all(path)
    layer = found.layers[1]
    assert found.id_T.tolist() == [7, 8, 9]
    assert layer.start_T1.tolist() == [0, 2, 3, 5]
    assert layer.chosen_N.tolist() == [3, 0, 2, 1, 2]
    assert layer.computed_N.tolist() == [3, 0, 2, 1, ABSENT]
    assert layer.weight_N.tolist() == [0.75, 0.25, 1, 0.5, 0]
    assert layer.token_N.tolist() == [0, 0, 1, 2, 2]
    assert layer.choice_N.tolist() == [0, 1, 0, 0, 1]
    assert layer.by_choice(layer.chosen_N, 2, ABSENT).tolist() == [[3, 0], [2, -1], [1, 2]]
    assert found.layers[3].count_T.tolist() == [1, 0, 1]


def test_the_columns_are_those_of_the_page(
    tmp_path: Path, hand_written: TraceBatch, write: Write
) -> None:
    table = pq.read_table(write(tmp_path / "t.parquet", hand_written))
    assert table["layer_01_experts"].to_pylist() == [[3, 0], [2], [1, 2]]
    assert table["layer_01_weights"].to_pylist() == [[0.75, 0.25], [1.0], [0.5, 0.0]]
    # Told only of the token whose experts did not all compute it.
    assert table["layer_01_computed_by"].to_pylist() == [None, None, [1, -1]]
    assert table["layer_03_computed_by"].null_count == 3
    page = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    for name in table.column_names:
        assert f"`{name.replace('01', 'NN').replace('03', 'NN')}`" in page


def test_a_batch_taken_apart_and_joined(hand_written: TraceBatch, same: Same) -> None:
    last, first = hand_written.take(np.array([2])), hand_written.take(np.array([0, 1]))
    assert last.layers[1].chosen_N.tolist() == [1, 2]
    same(TraceBatch.joined([first, last]), hand_written)


@st.composite
def traces(draw: st.DrawFn) -> tuple[TraceMeta, list[tuple[TraceBatch, list[str]]]]:
    """Batches of ragged rows, each with the names that its domains are numbered by."""
    numbers = draw(st.lists(st.integers(0, 120), min_size=1, max_size=3, unique=True))
    layers = tuple(
        TracedLayer(layer=number, num_experts=draw(st.integers(1, 300)), top_k=1)
        for number in sorted(numbers)
    )
    kinds: list[Probabilities | None] = [None, "float16", "float32"]
    probabilities = draw(st.sampled_from(kinds))
    meta = TraceMeta(model="m", vocabulary=2**31, layers=layers, probabilities=probabilities)
    names = draw(st.lists(st.text(max_size=5), max_size=3, unique=True))
    count = draw(st.integers(1, 3))
    return meta, [(draw(batches_of(meta, len(names))), names) for _ in range(count)]


@st.composite
def batches_of(draw: st.DrawFn, meta: TraceMeta, domains: int) -> TraceBatch:
    tokens = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    layers: dict[int, LayerRows] = {}
    for layer in meta.layers:
        counts = rng.integers(0, min(layer.num_experts, 4) + 1, tokens)
        chosen_N = rng.integers(0, layer.num_experts, counts.sum(), np.int32)
        moved_N = rng.random(len(chosen_N)) < draw(st.sampled_from([0.0, 0.3]))
        probs_TE = None
        if meta.probabilities is not None:
            probs_TE = rng.random((tokens, layer.num_experts)).astype(meta.probabilities)
        layers[layer.layer] = LayerRows(
            np.concatenate([[0], np.cumsum(counts)]),
            chosen_N,
            # Any bits, NaN, infinities and negative zeros among them.
            rng.integers(0, 2**32, len(chosen_N), np.uint32).view(np.float32),
            np.where(moved_N, rng.integers(-1, layer.num_experts, len(chosen_N)), chosen_N).astype(
                np.int32
            ),
            probs_TE,
        )
    ids, positions, sequences = rng.integers(0, 2**31, (3, tokens)).astype(np.int32)
    domain_T = rng.integers(-1, domains, tokens, np.int32)
    return TraceBatch(ids, positions, sequences, domain_T, layers)


@given(trace=traces(), group=st.integers(1, 20), tokens=st.integers(1, 20))
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
def test_any_trace_comes_back(
    tmp_path: Path, same: Same, trace: tuple[TraceMeta, list], group: int, tokens: int
) -> None:
    meta, batches = trace
    path = tmp_path / "t.parquet"
    with write_trace(path, meta) as writer:
        writer.group_tokens = group
        for batch, names in batches:
            for name in names:
                writer.domain_number(name)
            writer.append(batch)
            assert writer.kept < group
    expected = TraceBatch.joined([batch for batch, _ in batches])
    with TraceReader(path) as reader:
        assert (reader.meta, len(reader)) == (meta, len(expected))
        parts = list(reader.batches(tokens=tokens))
        assert reader.domains == tuple(batches[-1][1])
    assert all(0 < len(part) <= tokens for part in parts)
    same(TraceBatch.joined([*parts, expected.take(np.arange(0))]), expected)


def test_memory_is_bounded_by_the_rows_kept(
    tmp_path: Path, make_batch: Make, meta: TraceMeta
) -> None:
    # 16 + (8 + 8*2) + (8 + 8*1) = 56 bytes a token: 32 MiB would hold 599,186, so 2**15 bind.
    with write_trace(tmp_path / "t.parquet", meta) as writer:
        assert writer.group_tokens == 2**15
        writer.group_tokens = 100
        most = 0
        for seed in range(7):
            # Of 90 and then of 250: what comes in may be more than what is kept.
            writer.append(make_batch(90 if seed % 2 else 250, seed=seed))
            most = max(most, writer.kept)
        assert most < 100
        assert writer.tokens == 4 * 250 + 3 * 90
    groups = pq.ParquetFile(tmp_path / "t.parquet").metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sizes == [100] * 12 + [70]


def test_probabilities_make_the_parts_smaller(tmp_path: Path) -> None:
    # A token has 16 + 8 + 8*8 + 4*4096 = 16,472 bytes; 2**25 / 16,472 = 2037.06.
    layer = TracedLayer(layer=0, num_experts=4096, top_k=8)
    meta = TraceMeta(model="m", vocabulary=9, layers=(layer,), probabilities="float32")
    with write_trace(tmp_path / "t.parquet", meta) as writer:
        assert writer.group_tokens == 2037


def test_the_callers_arrays_may_be_used_again(
    tmp_path: Path, make_batch: Make, meta: TraceMeta, same: Same
) -> None:
    batch, kept = make_batch(30), make_batch(30)
    with write_trace(tmp_path / "t.parquet", meta) as writer:
        writer.append(batch)
        batch.id_T[:] = 0
        batch.layers[1].chosen_N[:] = 0
        batch.layers[1].weight_N[:] = 0
    same(read_all(tmp_path / "t.parquet"), kept)


def test_equal_traces_are_equal_files(tmp_path: Path, make_batch: Make, write: Write) -> None:
    first, second = (write(tmp_path / name, make_batch(50)) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_no_tokens(tmp_path: Path, make_batch: Make, write: Write) -> None:
    with TraceReader(write(tmp_path / "t.parquet", make_batch(0))) as reader:
        assert len(reader) == 0
        assert list(reader.batches()) == []


def test_an_error_in_the_block_leaves_nothing(
    tmp_path: Path, make_batch: Make, meta: TraceMeta
) -> None:
    def fail() -> None:
        with write_trace(tmp_path / "t.parquet", meta) as writer:
            writer.append(make_batch(10))
            raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_older_trace_stays_until_the_new_one_is_whole(
    tmp_path: Path, make_batch: Make, meta: TraceMeta, write: Write
) -> None:
    path = write(tmp_path / "t.parquet", make_batch(10))
    before = path.read_bytes()
    with write_trace(path, meta) as writer:
        writer.append(make_batch(20))
        assert path.read_bytes() == before
    assert len(read_all(path)) == 20


WRITE_FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from mixtura.trace import LayerRows, TraceBatch, TracedLayer, TraceMeta, write_trace
tokens = np.arange(1000, dtype=np.int32)
rows = LayerRows(np.arange(1001), tokens % 8, np.ones(1000, np.float32), tokens % 8)
meta = TraceMeta(model="m", vocabulary=1000, layers=(TracedLayer(layer=0, num_experts=8, top_k=1),))
with write_trace(Path(sys.argv[1]), meta) as writer:
    writer.group_tokens = 500
    while True:
        writer.append(TraceBatch(tokens, tokens, tokens, tokens * 0 - 1, {0: rows}))
        print(writer.tokens, flush=True)
"""


def test_killed_in_the_middle_there_is_no_half_file(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(folder / "t.parquet")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = [path.name for path in folder.iterdir()]
    assert [name for name in left if not name.endswith(".partial")] == []
    assert len(left) == 1
    assert (folder / left[0]).stat().st_size > 0


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
""" + WRITE_FOR_EVER.replace(
    "with write", "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nwith write"
)


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(folder / "t.parquet")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert StorageError.__name__ in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Exception ignored" not in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.id_T.fill(100), "id 100 must lie in 0..99"),
        (lambda b: b.id_T.fill(-1), "id -1 must lie in 0..99"),
        (lambda b: b.position_T.fill(-2), "position -2 must lie in 0.."),
        (lambda b: b.sequence_T.fill(-1), "sequence -1 must lie in 0.."),
        (lambda b: b.domain_T.fill(0), "domain 0 must lie in -1..-1"),
        (lambda b: b.layers[1].chosen_N.fill(4), "layer 1: expert 4 must lie in 0..3"),
        (lambda b: b.layers[3].chosen_N.fill(-1), "layer 3: expert -1 must lie in 0..7"),
        (lambda b: b.layers[1].computed_N.fill(4), "layer 1: computed_by 4 must lie in -1..3"),
        (lambda b: b.layers.pop(3), r"layers \[1\] were given, .* of layers \[1, 3\]"),
        (lambda b: b.layers[1].start_T1.fill(0), "layer 1: experts has 5 values, and 0 are needed"),
        (
            lambda b: b.layers[1].start_T1.put(1, 9),
            "layer 1: start must begin with 0 and never fall",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_not_written(
    tmp_path: Path, hand_written: TraceBatch, meta: TraceMeta, change: Callable, words: str
) -> None:
    change(hand_written)
    with write_trace(tmp_path / "t.parquet", meta) as writer:
        with pytest.raises(DataError, match=words):
            writer.append(hand_written)
        assert writer.tokens == writer.kept == 0


def test_arrays_of_different_lengths_are_refused(
    tmp_path: Path, make_batch: Make, meta: TraceMeta
) -> None:
    three, four = make_batch(3), make_batch(4)
    mixed = TraceBatch(three.id_T, four.position_T, three.sequence_T, three.domain_T, three.layers)
    with (
        write_trace(tmp_path / "t.parquet", meta) as writer,
        pytest.raises(
            DataError, match="position has 4 values, and 3 are needed, as many as tokens"
        ),
    ):
        writer.append(mixed)


def test_probabilities_that_are_missing_are_refused(
    tmp_path: Path, make_batch: Make, meta: TraceMeta
) -> None:
    with_probabilities = meta.model_copy(update={"probabilities": "float16"})
    with (
        write_trace(tmp_path / "t.parquet", with_probabilities) as writer,
        pytest.raises(DataError, match=r"layer 1: .* none was given where \(3, 4\) is needed"),
    ):
        writer.append(make_batch(3))
