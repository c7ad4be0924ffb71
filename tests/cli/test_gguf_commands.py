"""A GGUF file at the command line: packed once, and said."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.kernels.native import native

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
MakeGGUF = Callable[[str, str], Path]
ASK = ("--prompt", "1 + 1 =", "--temperature", "0", "--max-tokens", "8", "--json")

pytestmark = pytest.mark.skipif(
    native() is None, reason="without compiled kernels files run as they are"
)


@pytest.fixture
def file(gguf_of_kinds: MakeGGUF) -> Path:
    return gguf_of_kinds("Q4_0", "Q5_1")


def tokens(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["tokens"]


def test_generate_names_what_was_rounded_and_says_what_the_packed_folder_says(
    inside: Mixtura, file: Path
) -> None:
    assert inside("pack", file, "stored", "--bits", "stored").returncode == 0
    first, second = inside("generate", file, *ASK), inside("generate", file, *ASK)
    assert f"packing {file.name}, once: " in first.stderr
    assert "packing" not in second.stderr
    for done in (first, second):
        assert "26 tensors of Q5_1 unpacked and quantised again in 8 bits" in done.stderr
    assert tokens(first) == tokens(second) == tokens(inside("generate", "stored", *ASK))
    plain = inside("generate", file, *ASK, "--dtype", "float32")
    assert len(tokens(plain)) == 8
    assert "packed weights" not in plain.stderr


def test_chat_and_trace_run_from_packed_weights_too(inside: Mixtura, file: Path) -> None:
    done = inside("chat", file, "--max-tokens", "4", given="1 + 1\n")
    assert done.returncode == 0
    assert "runs from packed weights" in done.stderr
    ask = ("trace", file, "--prompt", "1 + 1 = 2")
    assert "runs from packed weights" in inside(*ask, "--out", "one.parquet").stderr
    plain = inside(*ask, "--out", "two.parquet", "--dtype", "float32")
    assert (plain.returncode, "packed" in plain.stderr) == (0, False)


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_the_end_of_a_process_leaves_nothing_native(
    mixtura: Mixtura, file: Path, name: str
) -> None:
    # nanobind lists on stderr what of its objects outlives the process.
    done = mixtura(name, file, "--max-tokens", "2", given="a\n")
    assert (done.returncode, "nanobind" in done.stderr) == (0, False), done.stderr


def test_a_full_disk_is_one_line(mixtura: Mixtura, file: Path, tmp_path: Path) -> None:
    full = ["prlimit", "--fsize=40000"]
    own = {"MIXTURA_CACHE": str(tmp_path / "cache")}
    done = mixtura("generate", file, *ASK, by=full, also=own)
    assert done.returncode == 2
    assert "nothing was half-written" in done.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "cache" / "packed").iterdir()] == [".making"]


def test_a_bound_that_is_none_is_refused(
    inside: Mixtura, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXTURA_CACHE_GB", "many")
    done = inside("generate", file, *ASK)
    assert (done.returncode, "MIXTURA_CACHE_GB=many must be a number" in done.stderr) == (2, True)
