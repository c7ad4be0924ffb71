"""GGUF files that run from packed weights in the user's cache."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from mixtura.checkpoints.gguf.blocks import groups_bits
from mixtura.checkpoints.gguf.kinds import Kind
from mixtura.checkpoints.gguf_cache import packed_cache, packed_gguf
from mixtura.checkpoints.open_model import open_model
from mixtura.checkpoints.packed_conversion import pack_model
from mixtura.errors import CheckpointError, ConfigError, StorageError
from mixtura.kernels.native import native
from mixtura.packed.file import PackedFile
from mixtura.packed.folder import FILE

FullDisk = Callable[[int], AbstractContextManager[None]]
MakeGGUF = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXTURA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


@pytest.fixture
def file(gguf_of_kinds: MakeGGUF, tmp_path: Path) -> Path:
    """Attention in Q4_0, all else in Q4_1; last changed a minute ago."""
    path = tmp_path / "tiny.gguf"
    shutil.copy(gguf_of_kinds("Q4_0", "Q4_1"), path)
    return path


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def opened(path: Path) -> Path:
    found = packed_gguf(path)
    assert found is not None
    return found.lease.path


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks_that_are_groups_are_packed_as_pack_does(
    gguf_of_kinds: MakeGGUF, tmp_path: Path, kind: str
) -> None:
    path = gguf_of_kinds(kind, kind)
    pack_model(path, tmp_path / "packed", 4 if kind == "Q4_0" else 8)
    cached = packed_gguf(path)
    assert cached is not None
    # Two layers of 4 matrices of attention and 3 of each of 4 experts; embedding and head.
    assert cached.remarks == (f"34 tensors of {kind} carried over exactly",)
    assert (cached.lease.path / FILE).read_bytes() == (tmp_path / "packed" / FILE).read_bytes()


def test_each_tensor_is_packed_in_the_bits_that_keep_it(file: Path, tmp_path: Path) -> None:
    cached = packed_gguf(file)
    assert cached is not None
    # Two layers: four matrices of attention; three of each of four experts, embedding and head.
    assert cached.remarks == (
        "8 tensors of Q4_0 carried over exactly",
        "26 tensors of Q4_1 unpacked and quantised again in 8 bits",
    )
    held = PackedFile(cached.lease.path / FILE).entries
    assert held["blocks.0.attention.qkv.weight"].format == "tiles4"
    assert held["blocks.0.ffn.experts"].format == "experts8"
    assert held["head.weight"].format == "tiles8"
    stored = pack_model(file, tmp_path / "stored", None)
    assert (stored.bits, stored.head_bits) == (8, 8)
    assert (cached.lease.path / FILE).read_bytes() == (tmp_path / "stored" / FILE).read_bytes()


@pytest.mark.parametrize(
    ("kind", "bits"),
    # Bits of a weight: 4.5, 8.5, 5, 5.5, 6.6, 4.5, 4.25, 3.4, 2.6, 32.
    [
        ("Q4_0", 4),
        ("Q8_0", 8),
        ("Q4_1", 8),
        ("Q5_0", 8),
        ("Q6_K", 8),
        ("Q4_K", 8),
        ("MXFP4", 8),
        ("Q3_K", 4),
        ("Q2_K", 4),
        ("F32", 8),
    ],
)
def test_bits_of_each_kind(kind: str, bits: int) -> None:
    assert groups_bits(Kind[kind]) == bits


@pytest.mark.skipif(native() is None, reason="without compiled kernels files run as they are")
def test_a_file_runs_from_its_packed_weights_unless_a_dtype_is_given(file: Path) -> None:
    found, plain = open_model(file), open_model(file, "float32")
    assert found.packed is not None
    assert found.title == "tiny.gguf"
    assert plain.packed is None
    (said,) = found.remarks
    assert said.startswith("tiny.gguf runs from packed weights: 8 tensors of Q4_0 carried over ex")
    assert said.endswith("--dtype float32 computes from the file as it is")
    assert plain.remarks == ()
    tokens_BS = torch.tensor([plain.tokenizer.encode("1 + 1 = 2, and so on")])
    assert found.tokenizer.encode("1 + 1 = 2, and so on") == tokens_BS[0].tolist()
    with torch.inference_mode():
        one, other = (model.decoder(tokens_BS).logits_BSV for model in (found, plain))
    # 0.01 was measured: 8 bits where the file has five, and rounded activations.
    assert float((one - other).norm() / other.norm()) < 0.05


def test_a_file_of_plain_numbers_runs_as_it_is(gguf_of_kinds: MakeGGUF, cache_folder: Path) -> None:
    assert packed_gguf(gguf_of_kinds("F32", "F32")) is None
    assert not cache_folder.exists()


def test_the_second_start_reads_neither_head_nor_weights(
    file: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    first = opened(file)
    for name in ("_can_be_packed", "_digest", "_write"):
        monkeypatch.delattr(f"mixtura.checkpoints.gguf_cache.{name}")
    assert opened(file) == first
    assert entries(cache_folder) == [first.name]


def test_the_same_bytes_elsewhere_are_packed_once(
    file: Path, tmp_path: Path, cache_folder: Path
) -> None:
    first = opened(file)
    shutil.copy(file, tmp_path / "copy.gguf")
    assert opened(tmp_path / "copy.gguf") == first
    assert entries(cache_folder) == [first.name]


def test_other_bytes_in_the_same_place_are_another_model(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixtura.checkpoints.gguf_cache._SAMPLE", 64)
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    first = opened(file)
    stat = file.stat()
    # One digit of one weight, where no sample is taken, in a file that claims to be as old.
    with file.open("r+b") as handle:
        handle.seek(-100, 2)
        (byte,) = handle.read(1)
        handle.seek(-100, 2)
        handle.write(bytes([byte ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(file) != first


def test_a_damaged_entry_is_made_again(file: Path) -> None:
    folder = opened(file)
    path = folder / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-64])
    if native() is not None:
        assert open_model(file).packed is not None
        assert path.read_bytes() == whole


@pytest.mark.skipif(native() is None, reason="nothing is packed without compiled kernels")
def test_an_entry_found_damaged_in_use_is_removed(file: Path, cache_folder: Path) -> None:
    path = opened(file) / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    model = open_model(file, wait=False)
    with pytest.raises(CheckpointError, match=r"head\.weight .*removed from the cache, so run the"):
        model.check.finish()
    assert entries(cache_folder) == []
    open_model(file).check.finish()
    assert path.read_bytes() == whole


def test_the_least_recently_used_goes_first_and_none_in_use(
    gguf_of_kinds: MakeGGUF, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("Q4_0", "Q5_0", "Q5_1")
    files = [gguf_of_kinds(kind, "Q4_0") for kind in kinds]
    first, second = (opened(path) for path in files[:2])
    held = packed_gguf(files[1])
    assert held is not None
    now = time.time()
    for folder, age in ((first, 10), (second, 20)):
        os.utime(folder / "used", (now - age, now - age))
    # Room for one of them: the second is older but in use, so the first goes.
    size = (first / FILE).stat().st_size
    monkeypatch.setenv("MIXTURA_CACHE_GB", str(1.5 * size / 1e9))
    third = opened(files[2])
    assert entries(cache_folder) == sorted([second.name, third.name])
    held.lease.release()
    assert opened(files[0]) == first
    assert entries(cache_folder) == [first.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from mixtura.checkpoints.gguf_cache import packed_gguf

def progress(stage, done, total):
    if stage.startswith("packing") and done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

packed_gguf(Path(sys.argv[1]), progress)
"""


def test_a_killed_first_start_leaves_nothing_half_written(file: Path, cache_folder: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert entries(cache_folder) == []
    (left,) = cache_folder.glob(".*.partial")
    assert (left / FILE).stat().st_size > 0
    os.utime(left, (0, 0))
    folder = opened(file)
    assert PackedFile(folder / FILE).check().finish() is None
    assert not left.exists()


def test_a_full_disk_leaves_nothing(file: Path, cache_folder: Path, full_disk: FullDisk) -> None:
    with full_disk(40_000), pytest.raises(StorageError, match="nothing was half-written: free som"):
        packed_gguf(file)
    assert entries(cache_folder) == []
    assert not list(cache_folder.glob(".*.partial"))


def test_less_room_than_is_needed_is_said_before_writing(
    file: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(file)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        StorageError, match=r"kB are to be written and 1\.00 kB are free; free some"
    ):
        packed_gguf(file)
    assert entries(cache_folder) == []


def test_a_cache_that_cannot_be_made_is_said(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MIXTURA_CACHE", str(tmp_path / "a file"))
    with pytest.raises(StorageError, match=r"Not a directory.*another place with MIXTURA_CACHE"):
        packed_gguf(file)


def test_only_a_gguf_file_says_in_how_many_bits(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only a GGUF file says in how many bits; give 4 or 8"):
        pack_model(tiny_run, tmp_path / "packed", None)


def test_an_entry_in_use_is_not_removed(file: Path) -> None:
    cached = packed_gguf(file)
    assert cached is not None
    name = cached.lease.path.name
    assert not packed_cache().remove(name)
    cached.lease.release()
    assert packed_cache().remove(name)
    assert not packed_cache().remove(name)
    assert not cached.lease.path.exists()


@pytest.mark.parametrize("content", ["{", '{"file": 1}', "[" * 100_000, None])
def test_an_entry_without_its_origin_is_packed_again(
    file: Path, cache_folder: Path, content: str | None
) -> None:
    origin = opened(file) / "origin.json"
    whole = origin.read_text(encoding="utf-8")
    if content is None:
        origin.unlink()
    else:
        origin.write_text(content, encoding="utf-8")
    assert opened(file) == origin.parent
    assert origin.read_text(encoding="utf-8") == whole
    assert entries(cache_folder) == [origin.parent.name]


def test_an_entry_whose_date_is_missing_is_listed_and_used(file: Path) -> None:
    folder = opened(file)
    (folder / "used").unlink()
    (entry,) = packed_cache().entries()
    assert (entry.path, entry.used > 0) == (folder, True)
    assert opened(file) == folder
    assert (folder / "used").exists()
