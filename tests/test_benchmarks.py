"""What the engine's benchmark counts and writes; what it measures needs a quiet machine."""

import dataclasses
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mixtura.kernels.native import compiled

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def shapes() -> ModuleType:
    return importlib.import_module("sides.shapes")


def tiny(shapes: ModuleType) -> Any:
    """Two layers of width 64: 2 heads of 32, 4 experts of 32, top-2, 384 tokens."""
    return dataclasses.replace(
        shapes.SHAPES["olmoe"],
        layers=2,
        width=64,
        heads=2,
        kv_heads=2,
        head_dim=32,
        experts=4,
        expert_width=32,
        top_k=2,
        vocabulary=384,
        published_layers=2,
    )


def test_olmoe_has_its_published_sizes(shapes: ModuleType) -> None:
    # 6.92e9 parameters in all, norms aside.
    assert shapes.SHAPES["olmoe"].weights == 6_919_028_736
    # A quarter of the layers keeps a quarter of the vocabulary: 50304 / 4 = 12576, in 64s 12608.
    assert shapes.SHAPES["olmoe"].of_depth(4).vocabulary == 12608


def test_a_step_reads_what_its_rows_choose(shapes: ModuleType) -> None:
    shape = tiny(shapes)
    # A layer: 4 x 64 x 64 = 16,384 of attention; an expert 3 x 64 x 32 = 6,144; a router 256.
    assert (shape.attention_weights, shape.expert_weights, shape.router_weights) == (
        16384,
        6144,
        256,
    )
    # One row: 2 layers x (16,384 + 2 x 6,144) + 384 x 64 = 81,920 at half a byte, and 2 x 256
    # routers' weights of 4 bytes: 40,960 + 2,048.
    assert shape.step_bytes(1, 4) == 43008
    # Two rows reach 4 x (1 - (1 - 1/2)^2) = 3 experts: 2 x 6,144 weights more.
    assert shape.step_bytes(2, 4) == 43008 + 2 * 6144 // 2
    # 10 tokens: 10 x (16,384 + 12,288 + 256) in the first layer; in the last one 10 x 8,192 for
    # keys and values, once 28,928 - 8,192 for the last token; and the head once.
    assert shape.prefill_macs(10) == 289_280 + 81_920 + 20_736 + 24_576


def test_the_file_is_read_by_our_own_reader(shapes: ModuleType, tmp_path: Path) -> None:
    gguf_file = importlib.import_module("sides.gguf_file")
    from mixtura.checkpoints.open_model import open_model

    path = gguf_file.gguf_file(tiny(shapes), tmp_path)
    opened = open_model(path, "float32")
    # One merge joins "ab"; all else is bytes.
    assert [len(opened.tokenizer.encode(text)) for text in ("ab", "ba", "ab a")] == [1, 2, 3]
    # Scales vary by a quarter around one that gives 0.02, and have either sign.
    gate = opened.decoder.state_dict()["blocks.1.ffn.experts.w_in"]
    assert float(gate.std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(gate.mean())) < 5 * 0.02 / math.sqrt(gate.numel())
    with torch.no_grad():
        logits = opened.decoder(torch.arange(20)[None]).logits_BSV
    assert bool(logits.isfinite().all())
    # It is there already, and is taken as it is.
    written = path.stat().st_mtime_ns
    assert gguf_file.gguf_file(tiny(shapes), tmp_path) == path
    assert path.stat().st_mtime_ns == written


def side(rate: float, seconds: int = 3) -> dict[str, Any]:
    return {
        "tokens_per_second": rate,
        "all": [rate] * seconds,
        "of_limit": {"raw reads": rate / 100},
        "limits": {"raw reads": 100.0},
        "elsewhere": [0.0] * seconds,
    }


def test_a_ratio_is_of_two_rates_of_one_phase() -> None:
    bench = importlib.import_module("sides.bench")
    first = {"what": "decode", "sides": {"llama.cpp": side(10), "mixtura": side(12)}}
    # In the second phase the machine is half as fast, and the peer there the best all the same.
    second = {"what": "decode", "sides": {"transformers eager": side(4), "mixtura": side(6)}}
    found = bench.summary([{"work": [first]}, {"work": [second]}])
    assert found == [
        {
            "what": "decode",
            "best_peer": "llama.cpp",
            "ratio": 1.2,
            "ratios": {"llama.cpp": 1.2, "transformers eager": 1.5},
        }
    ]


def test_tables_take_the_place_between_the_marks(shapes: ModuleType, tmp_path: Path) -> None:
    tables = importlib.import_module("sides.tables")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n", encoding="utf-8")
    shape = dataclasses.asdict(tiny(shapes))
    sides = {"transformers eager": side(4), "transformers grouped_mm": side(5), "mixtura": side(6)}
    one = {
        "shape": shape,
        "rounds": 3,
        "file_bytes": 4_000_000_000,
        "cache_bytes": 1_000_000_000,
        "summary": [{"what": "decode", "ratio": 1.2}],
        "phases": [{"work": [{"sides": sides}]}],
        "loading": {"mixtura": {"seconds": 0.5}},
        "resident_bytes": {"mixtura": {"resident": 4_500_000_000}},
    }
    machine = {"cpu": "A CPU", "instruction_sets": ["avx2"]}
    result = {"machine": machine, "threads": 2, "shapes": [one]}
    tables.insert(json.loads(json.dumps(result)), page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "medians of 3 rounds" in text
    # The faster of two ways of transformers; no figure for peers that did not run.
    assert "| decode |  |  | 5.0 | 6.0 | 1.20 | 0.06 of raw reads |" in text
    assert "| mixtura | 0.50 | 4.50 |" in text
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="has no <!-- engine: begin -->"):
        tables.insert(result, page)


@pytest.mark.skipif(compiled("mixtura.kernels._limits") is None, reason="no compiled kernels here")
def test_limits_are_taken_in_as_many_threads_as_asked(shapes: ModuleType) -> None:
    before = torch.get_num_threads()
    setting = importlib.import_module("sides.side").Setting(Path(), tiny(shapes), before + 1)
    try:
        limits = importlib.import_module("sides.limits").Limits(setting)
        module = importlib.import_module("mixtura.kernels._limits")
        assert module.threads() == before + 1 == torch.get_num_threads()
        assert all(rate > 0 for rate in limits.peaks(0.001).values())
        words = torch.ones(1 << 12, dtype=torch.int64)
        assert module.read_bytes(words.data_ptr(), 8 << 12) == 1 << 12
    finally:
        torch.set_num_threads(before)


def test_versions_ratio_is_old_over_new_with_its_interval() -> None:
    versions = importlib.import_module("versions")
    # Ratios 1.0 to 1.2: the median is 1.1, and its interval lies within them.
    found = versions.row("work", [(1.0 + n / 100, 1.0) for n in range(21)])
    assert found["old_over_new"] == pytest.approx(1.1)
    low, high = found["interval"]
    assert 1.0 < low < 1.1 < high < 1.2
    assert versions.interval([1.0] * 5) == (1.0, 1.0)


def test_versions_sides_begin_in_turn() -> None:
    versions = importlib.import_module("versions")
    order: list[str] = []

    def timed(name: str, seconds: float) -> Any:
        def run() -> float:
            order.append(name)
            return seconds

        return run

    sides = {"old": timed("old", 2.0), "new": timed("new", 1.0)}
    assert [versions.paired(sides, number) for number in range(2)] == [(2.0, 1.0)] * 2
    assert order == ["new", "old", "old", "new"]
