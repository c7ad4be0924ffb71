"""`mixtura pack`, and what the other commands make of a packed folder."""

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.kernels.native import native
from mixtura.packed.file import PackedFile
from mixtura.packed.folder import FILE

Mixtura = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def packed(inside: Mixtura, tiny_run: Path, tmp_path: Path) -> Path:
    assert inside("pack", tiny_run, "packed", "--bits", "8").returncode == 0
    return tmp_path / "packed"


def test_a_run_becomes_a_packed_folder(inside: Mixtura, tiny_run: Path, tmp_path: Path) -> None:
    done = inside("pack", tiny_run, "packed", "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert (said["bits"], said["head_bits"], said["family"]) == (4, 4, "mixtura")
    assert said["bytes"] == (tmp_path / "packed" / FILE).stat().st_size
    # Experts of 16 are half a group wide.
    assert "padded with zeros, there from 16 to 32" in done.stderr
    assert said["remarks"][0] in done.stderr


def test_bits_of_the_head_are_chosen_by_themselves(
    inside: Mixtura, tiny_run: Path, tmp_path: Path
) -> None:
    done = inside("pack", tiny_run, "packed", "--head-bits", "8")
    assert (done.returncode, done.stdout) == (0, "packed\n")
    assert "bits a weight" in done.stderr
    entries = PackedFile(tmp_path / "packed" / FILE).entries
    assert entries["head.weight"].format == "tiles8"
    assert entries["blocks.0.ffn.experts"].format == "experts4"


def test_a_packed_folder_generates(inside: Mixtura, packed: Path, tiny_run: Path) -> None:
    prompt = ("--prompt", "1 + 1 =", "--temperature", "0", "--max-tokens", "8", "--json")
    said = json.loads(inside("generate", packed, *prompt).stdout.splitlines()[-1])
    before = json.loads(inside("generate", tiny_run, *prompt).stdout.splitlines()[-1])
    assert len(said["tokens"]) == len(before["tokens"]) == 8


@pytest.mark.skipif(native() is None, reason="a line says that there are no compiled kernels")
def test_generate_of_a_packed_folder_ends_without_a_word_of_the_library(
    mixtura: Mixtura, packed: Path
) -> None:
    done = mixtura("generate", packed, "--prompt", "1 + 1 =", "--max-tokens", "8")
    assert done.returncode == 0
    (remark,) = done.stderr.splitlines()
    assert remark.startswith("[8 tokens, ")


def test_a_packed_folder_is_traced(inside: Mixtura, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("1 + 1 = 2", encoding="utf-8")
    done = inside("trace", packed, "--text", "text.txt", "--out", "one.parquet", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["tokens"], told["layers"]) == (len("1 + 1 = 2"), [0, 1])


def test_a_packed_folder_is_inspected_and_checked(inside: Mixtura, packed: Path) -> None:
    shown = inside("inspect", packed).stdout
    assert "packed in 8 bits" in shown
    assert "2 x experts8 [4, 32, 32, 16]" in shown
    assert re.search(r"as it was written, by \d+ digests", shown)
    assert json.loads(inside("inspect", packed, "--json").stdout)["verified"] is True
    raw = bytearray((packed / FILE).read_bytes())
    raw[-1] ^= 1
    (packed / FILE).write_bytes(raw)
    done = inside("inspect", packed)
    assert done.returncode == 2
    assert "head.weight (head) is not what was written (its digest differs)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pack", "none", "out"], "none: no such file or folder; give a run's folder"),
        (["pack", "packed", "out"], "is packed already"),
        (["pack", "RUN", "packed"], "packed: already exists"),
        (["pack", "RUN", "out", "--bits", "5"], "'5' is not one of '4', '8'"),
        (["generate", "packed", "--dtype", "float16", "--prompt", "a"], "not in float16; leave"),
    ],
)
def test_mistakes(
    inside: Mixtura, packed: Path, tiny_run: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = inside(*[str(tiny_run) if word == "RUN" else word for word in arguments])
    assert done.returncode == 2
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]


def test_a_truncated_file_is_one_line(inside: Mixtura, packed: Path) -> None:
    path = packed / FILE
    path.write_bytes(path.read_bytes()[:-64])
    done = inside("generate", packed, "--prompt", "a")
    assert done.returncode == 2
    assert "it was truncated or added to: copy it again" in done.stderr


def test_ctrl_c_leaves_nothing(start: Start, tiny_run: Path, tmp_path: Path) -> None:
    process = start("pack", tiny_run, "packed")
    assert process.stderr is not None
    # Loading torch takes seconds, and the first progress is said once the file is begun.
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    status = process.wait(60)
    # It may have been done before the signal came.
    left = [path.name for path in tmp_path.iterdir()]
    assert (status, left) in [(130, []), (0, ["packed"])]
