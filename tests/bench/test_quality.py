"""`mixtura bench quality` from end to end, on a run that was really trained."""

import shutil
from pathlib import Path

import pytest

from mixtura.bench import QualityOptions, bench_quality
from mixtura.checkpoints.loaded_run import load_run
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.errors import ConfigError, DataError
from mixtura.kernels.packed.linear import arithmetic_of


def test_eight_bits_cost_less_than_four(tiny_run: Path) -> None:
    found = bench_quality(tiny_run, QualityOptions(length=32, tokens=1024, peer=True))
    rows = {row.name: row for row in found.rows}
    assert [row.name for row in found.rows] == [
        "16 bits",
        "Q8_0 (llama.cpp's rule), weights alone",
        "8 bits, weights alone",
        "8 bits, prefill",
        "8 bits, decode",
        "Q4_0 (llama.cpp's rule), weights alone",
        "4 bits, weights alone",
        "4 bits, prefill",
        "4 bits, decode",
    ]
    assert rows["16 bits"].ratio == 1
    assert rows["8 bits, decode"].arithmetic == arithmetic_of("decode")
    # A model of 256 bytes that was trained is better than drawing lots, and rounding spoils little.
    assert 1 < rows["16 bits"].perplexity < 100
    assert abs(rows["8 bits, weights alone"].ratio - 1) < 0.01
    assert abs(rows["8 bits, decode"].ratio - 1) < 0.01
    assert abs(rows["4 bits, prefill"].ratio - 1) < 0.1
    eight, four = (abs(rows[f"{n} bits, weights alone"].ratio - 1) for n in (8, 4))
    assert eight < four
    # Bytes are tokens here: bits per byte are the perplexity's logarithm.
    assert 2 ** rows["16 bits"].bits_per_byte == pytest.approx(rows["16 bits"].perplexity)
    weights = 2 * load_run(tiny_run).decoder.config.total_parameters()
    assert rows["16 bits"].bytes == weights


def test_a_run_reads_what_was_held_out_and_other_text_when_told(
    tiny_run: Path, tiny_corpus: Path
) -> None:
    held = bench_quality(tiny_run, QualityOptions(bits=(16,), length=32))
    assert (held.text, len(held.rows)) == ("held out from its training", 1)
    everything = bench_quality(tiny_run, QualityOptions(bits=(16,), text=tiny_corpus, length=32))
    # A tenth of the documents is held out.
    assert 0 < held.windows < everything.windows / 4


def test_what_cannot_be_measured_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"200 tokens exceeds the model's context of 64"):
        bench_quality(tiny_run, QualityOptions(length=200))
    short = tmp_path / "short.txt"
    short.write_text("1, 2", encoding="utf-8")
    with pytest.raises(DataError, match="none of 1 documents"):
        bench_quality(tiny_run, QualityOptions(text=short))
    pack_model(tiny_run, tmp_path / "packed", 8)
    with pytest.raises(ConfigError, match="is packed already"):
        bench_quality(tmp_path / "packed", QualityOptions())


def test_a_damaged_model_leaves_nothing_behind(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(Exception, match="has no checkpoint yet"):
        bench_quality(tmp_path / "run", QualityOptions())
