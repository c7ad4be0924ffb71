"""The file byte by byte, and what of it is refused."""

import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.packed.packed_files import Model

from mixtura.errors import CheckpointError, ConfigError
from mixtura.kernels.packed.groups import Bits, quantise
from mixtura.kernels.packed.tiles import tile
from mixtura.packed.file import PackedFile, PackedWriter
from mixtura.packed.folder import FILE
from mixtura.packed.header import Entry, Header, encoded, placed

Write = Callable[..., PackedFile]


def test_the_file_by_hand(write: Write) -> None:
    raw = write().path.read_bytes()
    magic, version, zero, length = struct.unpack("<8sIIQ", raw[:24])
    assert (magic, version, zero) == (b"MIXTURA\0", 1, 0)
    text, digest = raw[24 : 24 + length], raw[24 + length : 56 + length]
    assert hashlib.sha256(text).digest() == digest
    header = json.loads(text)
    assert (header["bits"], header["family"], header["config"]) == (4, "none", {"a": 1})
    # Data begins on the next page.
    data = raw[-(-(56 + length) // 4096) * 4096 :]
    end = 0
    for entry in header["tensors"]:
        boundary = 4096 if entry["format"].startswith("experts") else 64
        assert entry["offset"] == -(-end // boundary) * boundary
        end = entry["offset"] + entry["bytes"]
        size = entry["bytes"] // len(entry["sha256"])
        for part, known in enumerate(entry["sha256"]):
            start = entry["offset"] + part * size
            assert hashlib.sha256(data[start : start + size]).hexdigest() == known
    assert len(data) == end


def test_sizes_by_hand(write: Write) -> None:
    entries = write().entries
    # 48 rows are two units of one block of 64 inputs: 2 * 1152.
    assert entries["attention.qkv.weight"].bytes == 2304
    # An expert: 24 gate and 24 up rows padded to 32 are two units of one block, w_out one: a page.
    assert entries["moe.experts"].bytes == 3 * 4096
    assert entries["moe.experts"].shape == (3, 48, 32, 24)
    # F = 64 without a gate: 2 units; 32 rows of 64: one.
    assert entries["ffn"].shape == (1, 64, 32, 64)
    assert entries["norm.weight"].bytes == 32 * 4


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_read_is_what_was_written(write: Write, model: Model, bits: Bits) -> None:
    file = write(bits)
    assert torch.equal(file.read("norm.weight"), model.norm.weight)
    wanted = tile(quantise(model.attention.qkv.weight.detach(), bits))
    assert torch.equal(file.read("attention.qkv.weight"), wanted)
    experts = file.read("moe.experts")
    assert experts.shape == (3, file.entries["moe.experts"].stride)
    file.check().finish()


def test_experts_lie_on_pages_of_memory_and_nothing_is_copied(write: Write) -> None:
    file = write()
    assert file.read("moe.experts").data_ptr() % 4096 == 0
    assert file.read("attention.qkv.weight").data_ptr() % 64 == 0
    assert file.read("moe.experts").data_ptr() == file.read("moe.experts").data_ptr()


def test_a_head_of_other_bits_is_said_by_its_format(write: Write) -> None:
    entries = write(4, head_bits=8).entries
    formats = {name: entry.format for name, entry in entries.items()}
    assert formats["head.weight"] == formats["embedding.weight"] == "tiles8"
    assert formats["attention.qkv.weight"] == "tiles4"


def test_plain_tensors_of_any_kind(tmp_path: Path) -> None:
    held = {
        "a": torch.tensor([1.5, -2.0]).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
    }
    entries: list[Entry] = []
    for (name, tensor), stored_as in zip(
        held.items(), ("bfloat16", "int64", "bool", "float32"), strict=True
    ):
        last = entries[-1] if entries else None
        entries.append(placed(name, stored_as, tuple(tensor.shape), last))
    header = Header(writer="", family="", bits=4, config={}, tensors=tuple(entries))
    with (tmp_path / FILE).open("wb") as handle:
        writer = PackedWriter(handle, header)
        for tensor in held.values():
            with writer.tensor() as out:
                out.add(tensor)
        writer.finish()
    file = PackedFile(tmp_path / FILE)
    assert all(torch.equal(file.read(name), tensor) for name, tensor in held.items())
    file.check().finish()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_said_by_the_writer() -> None:
    # A part is written while the next ones are made: whoever makes them hears of it, not a thread.
    tensor = torch.zeros(1 << 16)
    entry = placed("a", "float32", tuple(tensor.shape), None)
    header = Header(writer="test", family="none", bits=4, config={}, tensors=(entry,))
    with Path("/dev/full").open("wb", buffering=0) as handle:
        writer = PackedWriter(handle, header)
        with writer.tensor() as out:
            out.add(tensor)
        with pytest.raises(OSError, match="No space left"):
            writer.finish()


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (0, "is not a packed model"),
        (10, "is not a packed model"),
        (200, "has a header of .*; it was truncated"),
        (-1, "bytes long where its header says .*; it was truncated"),
        (-5000, "bytes long where its header says .*; it was truncated"),
    ],
)
def test_a_truncated_file_is_refused(write: Write, keep: int, said: str) -> None:
    path = write().path
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=said):
        PackedFile(path)


def test_a_file_that_grew_is_refused(write: Write) -> None:
    path = write().path
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="truncated or added to"):
        PackedFile(path)


def test_a_header_of_gigabytes_is_refused_unread(write: Write) -> None:
    path = write().path
    raw = path.read_bytes()
    # Of zeros that take no place on the disk; the length stands behind 16 bytes.
    path.write_bytes(raw[:16] + (5 << 30).to_bytes(8, "little"))
    os.truncate(path, 6 << 30)
    with pytest.raises(CheckpointError, match="header of 5,368,709,120 bytes, where 50,331,648"):
        PackedFile(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        PackedFile(tmp_path / FILE)
    with pytest.raises(CheckpointError, match="cannot be read"):
        PackedFile(tmp_path)


def test_a_newer_version_is_refused_by_its_number(write: Write) -> None:
    path = write().path
    raw = bytearray(path.read_bytes())
    raw[8] = 2
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"version 2, and this Mixtura reads version 1; upg"):
        PackedFile(path)


def test_an_altered_header_is_refused(write: Write) -> None:
    path = write().path
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"family":"none"', b'"family":"some"', 1))
    with pytest.raises(CheckpointError, match="its header was altered or damaged"):
        PackedFile(path)


@pytest.mark.parametrize(
    ("name", "byte", "said"),
    [
        ("moe.experts", 4096 + 100, "moe.experts, expert 1 is not what was written"),
        ("head.weight", 0, "head.weight is not what was written"),
        ("norm.weight", 5, "norm.weight is not what was written"),
    ],
)
def test_altered_weights_are_named_when_all_is_read(
    write: Write, name: str, byte: int, said: str
) -> None:
    file = write()
    raw = bytearray(file.path.read_bytes())
    begin = len(raw) - file.header.data_bytes
    raw[begin + file.entries[name].offset + byte] ^= 1
    file.path.write_bytes(raw)
    altered = PackedFile(file.path)
    with pytest.raises(CheckpointError, match=said):
        altered.check().finish()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bytes": 64}, "norm.weight has bytes=64 where its shape and place say 128"),
        ({"offset": 0}, "norm.weight has offset=0 where"),
        ({"shape": (-32,)}, "norm.weight has negative sizes=1 where"),
        ({"format": "tiles4"}, "norm.weight has dims=1 where its shape and place say 2"),
        ({"sha256": ()}, "norm.weight has digests=0 where its shape and place say 1"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    write: Write, change: dict[str, Any], said: str
) -> None:
    file = write()
    entries = tuple(
        entry.model_copy(update=change) if entry.name == "norm.weight" else entry
        for entry in file.header.tensors
    )
    header = file.header.model_copy(update={"tensors": entries})
    file.path.write_bytes(encoded(header) + bytes(header.data_bytes))
    with pytest.raises(CheckpointError, match=said):
        PackedFile(file.path)


def test_an_unknown_key_of_the_header_is_refused(write: Write) -> None:
    path = write().path
    text = json.dumps({**json.loads(PackedFile(path).header.model_dump_json()), "more": 1}).encode()
    raw = struct.pack("<8sIIQ", b"MIXTURA\0", 1, 0, len(text))
    path.write_bytes(raw + text + hashlib.sha256(text).digest())
    with pytest.raises(ConfigError, match="unknown key 'more'"):
        PackedFile(path)
