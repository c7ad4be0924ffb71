"""The head of a file is what llama.cpp's own reader finds, and damage is an error with a name."""

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.checkpoints.gguf.header import GGUFHeader, read_header
from mixtura.errors import CheckpointError

Write = Callable[..., Path]


def test_the_head_is_what_the_reference_finds(write: Write) -> None:
    path = write(untied=True, keys={"rope.freq_base": 1e5}, template="{{ messages }}")
    header, reference = read_header(path), GGUFReader(path)
    # The reference adds three keys of its own, "GGUF.version" and so on.
    fields = {k: f.contents() for k, f in reference.fields.items() if not k.startswith("GGUF.")}
    assert set(header.metadata) == set(fields)
    for key, value in header.metadata.items():
        if isinstance(value, float):
            assert value == pytest.approx(fields[key], rel=1e-7)
        else:
            assert np.array_equal(value, fields[key])
    assert [
        (one.name, list(one.shape[::-1]), one.kind, one.start, one.bytes) for one in header.tensors
    ] == [
        (one.name, one.shape.tolist(), one.tensor_type, one.data_offset, one.n_bytes)
        for one in reference.tensors
    ]


def test_a_number_of_32_bits_is_the_decimal_that_was_meant(write: Write) -> None:
    # As 64 bits the fp32 next to 1e-5 is 9.999999747378752e-06.
    metadata = read_header(write()).metadata
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def test_a_file_cut_anywhere_is_refused(write: Write, tmp_path: Path) -> None:
    whole = write().read_bytes()
    end_of_head = read_header(tmp_path / "tiny.gguf").tensors[0].start
    cut = tmp_path / "cut.gguf"
    # Each byte of the beginning, then every 97th of the head, then the last of the weights.
    for size in [*range(1, 200), *range(200, end_of_head, 97), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut short|begins with"):
            read_header(cut)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty; expected a GGUF file"),
        (b"PK\x03\x04 a zip", "begins with b'PK"),
        (b"GGUF" + struct.pack("<I", 1), "is of GGUF version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "within the list of 1152921504606846976 keys"),
        (
            # A key "a" that holds 2^60 strings.
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**60),
            "within a; it is cut short",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 77),
            "a has a value of the unknown type 77",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(8),
            "the name of a key is no UTF-8 text",
        ),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"some\.gguf: .*") as caught:
        read_header(path)
    assert problem in str(caught.value)


def test_a_head_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    # A key "a" that holds a text of zeros, which take no place on the disk.
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IQ", 8, 5 << 30)
    )
    os.truncate(path, 6 << 30)
    with pytest.raises(CheckpointError, match=r"long\.gguf: a would end at byte 5368709165, where"):
        read_header(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.gguf: cannot be read \(No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 3 keys and one tensor, 300 bytes."""
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("some", ["a", "b"])
    writer.add_float32("number", 0.5)
    writer.add_tensor("t", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_never_more_than_a_checkpoint_error(small: Path, data: Any) -> None:
    raw = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = small.with_name("damaged.gguf")
    damaged.write_bytes(raw)
    # Any other exception would fail the test.
    with suppress(CheckpointError):
        assert isinstance(read_header(damaged), GGUFHeader)


def raw_file(
    *tensors: tuple[str, tuple[int, ...], int, int], data: int, values: bytes = b""
) -> bytes:
    """A file of fp32 tensors: name, dims, number of its kind, place behind the head."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1 if values else 0) + values
    for name, dims, kind, offset in tensors:
        head += struct.pack("<Q", len(name)) + name.encode()
        head += struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return head + bytes(-len(head) % 32) + bytes(data)


def alignment(value: int) -> bytes:
    key = b"general.alignment"
    return struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        # 8 floats are 32 bytes.
        (
            raw_file(("a", (8,), 0, 0), ("b", (8,), 0, 0), data=32),
            "tensors a and b overlap at byte",
        ),
        (
            raw_file(("a", (16,), 0, 0), ("b", (8,), 0, 32), data=64),
            "tensors a and b overlap at byte",
        ),
        (raw_file(("a", (8,), 0, 4), data=64), "tensor a begins 4 bytes behind the head"),
        (raw_file(("a", (8,), 0, 0), ("a", (8,), 0, 32), data=64), "lists the tensor a twice"),
        (raw_file(("a", (8,), 0, 32), data=32), "tensor a ends at byte 128, but the file has 96"),
        (raw_file(("a", (8,), 0, 2**63), data=32), "tensor a ends at byte"),
        (raw_file(("a", (2**63, 2**63), 0, 0), data=32), "tensor a ends at byte"),
        (raw_file(data=0, values=alignment(24)), "general.alignment=24 must be a power of 2"),
        (raw_file(data=0, values=alignment(0)), "general.alignment=0 must be a power of 2"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "within the list of 1152921504606846976 tens"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1000) + bytes(999), "within the list of 1000 keys"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * alignment(32),
            "has the key general.alignment twice",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a"
            + struct.pack("<IIQ", 9, 8, 2**22 + 1) + bytes(8 * (2**22 + 1)),
            "a lists 4194305 texts, over 4194304",
        ),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"some\.gguf: .*") as caught:
        read_header(path)
    assert problem in str(caught.value)


def test_a_gap_between_tensors_is_none_of_these(tmp_path: Path) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(raw_file(("b", (8,), 0, 128), ("a", (8,), 0, 0), data=160))
    assert [place.start for place in read_header(path).tensors] == [96 + 128, 96]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    for name, what in (("pipe.gguf", "a named pipe"), ("zero.gguf", "a device")):
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read, since it is {what}"):
            read_header(tmp_path / name)
