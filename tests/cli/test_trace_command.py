"""`mixtura trace`: the file that it writes, what it says of it, and what it refuses."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixtura.checkpoints.loaded_run import load_run
from mixtura.trace import TraceBatch, TraceReader
from mixtura.tracing.model_trace import replay

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of two domains: 150 bytes in two files of `sums`, 30 in one of `counting`."""
    folder = tmp_path / "few"
    for name, text in (("sums/a", "1+1=2\n" * 20), ("sums/b", "2+2=4\n" * 5)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "counting").mkdir()
    (folder / "counting" / "c").write_text("1, 2, 3, 4, 5, 6, 7, 8, 9, 10\n", encoding="utf-8")
    return folder


def test_a_folder_of_domains(inside: Mixtura, tiny_run: Path, few: Path, tmp_path: Path) -> None:
    # The model knows bytes and a context of 64: sequences of 30, then 64 and 56, then 30.
    done = inside("trace", tiny_run, "--text", few, "--out", "t.parquet", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["tokens"] == 180
    assert told["sequences"] == 4
    assert told["layers"] == [0, 1]
    assert told["domains"] == ["counting", "sums"]
    assert told["bytes"] == (tmp_path / "t.parquet").stat().st_size
    assert told["bytes_per_token"] == told["bytes"] / 180
    assert told["skipped"] == {}
    with TraceReader(tmp_path / "t.parquet") as trace:
        assert trace.meta.model == told["model"] == "tiny, step 40"
        assert trace.meta.tokenizer == "ByteTokenizer"
        assert trace.domains == ("counting", "sums")
        (batch,) = trace.batches()
    assert batch.sequence_T.tolist() == [0] * 30 + [1] * 64 + [2] * 56 + [3] * 30
    assert batch.position_T[94:96].tolist() == [0, 1]
    assert batch.domain_T.tolist() == [0] * 30 + [1] * 150
    assert bytes(batch.id_T[:4].tolist()) == b"1, 2"
    assert all((rows.count_T == 2).all() for rows in batch.layers.values())


def test_what_was_traced_can_be_replayed(inside: Mixtura, tiny_run: Path, tmp_path: Path) -> None:
    prompt = "7 + 8 = 15, 16, 17"
    assert inside("trace", tiny_run, "--prompt", prompt, "--out", "p.parquet").returncode == 0
    loaded = load_run(tiny_run)
    tokens_BS = torch.tensor([loaded.tokenizer.encode(prompt)])
    with TraceReader(tmp_path / "p.parquet") as trace, torch.inference_mode():
        assert trace.domains == ()
        before = loaded.decoder(tokens_BS).logits_BSV
        with replay(loaded.decoder, trace, [0]):
            assert torch.equal(loaded.decoder(tokens_BS).logits_BSV, before)


def test_layers_probabilities_and_a_limit(
    inside: Mixtura, tiny_run: Path, few: Path, tmp_path: Path
) -> None:
    options = ("--layers", "1", "--all-probabilities", "--max-tokens", "100")
    done = inside("trace", tiny_run, "--text", few / "sums" / "a", "--out", "t.parquet", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("t.parquet: 100 tokens, 2 sequences, 1 layer, 1 domain, ")
    with TraceReader(tmp_path / "t.parquet") as trace:
        assert trace.meta.numbers == (1,)
        assert trace.domains == ("a",)
        batch = TraceBatch.joined(list(trace.batches()))
    probs_TE = batch.layers[1].probs_TE
    assert probs_TE is not None
    # Each a share of four experts, to the 11 bits of half precision.
    assert probs_TE.shape == (100, 4)
    assert abs(probs_TE.astype(float).sum(1) - 1).max() < 4 * 2**-11


def test_progress_and_what_was_left_out_go_to_stderr(
    inside: Mixtura, tiny_run: Path, few: Path
) -> None:
    (few / "sums" / "image.png").write_bytes(b"\x89PNG")
    done = inside("trace", tiny_run, "--text", few, "--out", "t.parquet")
    assert done.returncode == 0
    assert "tracing: " in done.stderr
    assert " left" in done.stderr
    assert "image.png: not UTF-8" in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "t"], ["--text or --prompt", "neither was given; give one"]),
        (["--out", "t", "--text", "a", "--prompt", "b"], ["both were given; give one"]),
        (["--prompt", "b"], ["Missing option '--out'", "'mixtura trace --help'"]),
        (["--out", "t", "--text", "none.txt"], ["none.txt: no such file or folder"]),
        (["--out", "t", "--prompt", "a", "--layers", "0,x"], ["--layers 0,x", "as in 0,5"]),
        (["--out", "t", "--prompt", "a", "--max-tokens", "0"], ["--max-tokens", "1"]),
        (["--out", "t", "--prompt", "a"], ["run: no such file or folder", "give a run's folder"]),
    ],
)
def test_mistakes_are_said_before_torch_is_loaded(
    mixtura: Mixtura, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n", encoding="utf-8")
    done = mixtura("trace", "run", *arguments, also={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("mixtura: ")
    for words in said:
        assert words in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", ""], "there is no text to trace"),
        (["--prompt", "a", "--layers", "0,9"], "layer 9 of tiny, step 40 is no MoE layer"),
        (["--text", "binary"], "there is no text to trace; binary: binary (NUL at byte 1)"),
    ],
)
def test_what_cannot_be_traced_leaves_no_file(
    inside: Mixtura, tiny_run: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "binary").write_bytes(b"a\0b")
    done = inside("trace", tiny_run, *arguments, "--out", "t.parquet")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["binary"]


def test_ctrl_c_leaves_no_half_file(start: Start, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("12345678\n" * 200_000, encoding="utf-8")
    process = start("trace", tiny_run, "--text", "long.txt", "--out", "out/t.parquet")
    # The file's own folder is made when writing begins.
    while not (tmp_path / "out").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, remarks = process.communicate(timeout=60)
    assert process.returncode == 130, remarks
    assert output == ""
    assert "Traceback" not in remarks
    assert list((tmp_path / "out").iterdir()) == []
