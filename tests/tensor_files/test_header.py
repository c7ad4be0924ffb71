"""A safetensors header is what the library finds, or is refused in a line that names the tensor."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mixtura.errors import CheckpointError
from mixtura.tensor_files.header import read_header


def write(path: Path, tree: Any, data: int) -> Path:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_the_header_is_what_the_library_finds(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(2, 3),
        "none": torch.empty(0, 4),
        "one": torch.tensor(1, dtype=torch.int64),
        "b": torch.ones(5, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "f", metadata={"format": "pt"})
    found = read_header(tmp_path / "f")
    raw = (tmp_path / "f").read_bytes()
    with safe_open(tmp_path / "f", "pt") as opened:
        assert set(found) == set(opened.keys())
        for name, span in found.items():
            part = opened.get_slice(name)
            assert (list(span.shape), span.dtype) == (part.get_shape(), part.get_dtype())
            held = tensors[name].flatten().view(torch.uint8).numpy().tobytes()
            assert raw[span.start : span.start + span.bytes] == held


@pytest.mark.parametrize(
    ("tree", "data", "problem"),
    [
        # 6 numbers of 4 bytes are 24.
        ({"a": entry()}, 23, "has 24 bytes more"),
        ({"a": entry(shape=[2, 4])}, 24, "a, F32 of shape [2, 4], has 24 bytes in place of 32"),
        ({"a": entry(dtype="BF16")}, 24, "a, BF16 of shape [2, 3], has 24 bytes in place of 12"),
        ({"a": entry(shape=[2**62, 3])}, 24, "has 24 bytes in place of 55340232221128654848"),
        ({"a": entry(dtype="F4")}, 24, "a is of the unknown dtype 'F4'"),
        ({"a": entry(dtype=["F32"])}, 24, "a is of the unknown dtype ['F32']"),
        ({"a": entry(shape=[-2, -3])}, 24, "a has the shape [-2, -3]"),
        ({"a": entry(shape=[2.0, 3])}, 24, "a has the shape [2.0, 3]"),
        ({"a": entry(shape=[1] * 9)}, 4, "a has the shape [1, 1,"),
        ({"a": entry(shape=None)}, 24, "a has the shape None"),
        ({"a": entry(offsets=[24, 0])}, 24, "a, F32 of shape [2, 3], has -24 bytes"),
        ({"a": entry(offsets=[0, 24, 24])}, 24, "a has the data_offsets [0, 24, 24]"),
        ({"a": entry(offsets=[True, 24])}, 24, "a has the data_offsets [True, 24]"),
        ({"a": entry(), "b": entry()}, 24, "b begins at byte"),
        ({"a": entry(), "b": entry(offsets=[32, 56])}, 56, "b begins at byte"),
        ({"a": entry(offsets=[8, 32])}, 32, "a begins at byte"),
        ({"a": 5}, 24, "a is of the unknown dtype None"),
        (b'{"a": 1, "a": 2}', 0, "has the key 'a' twice"),
        (b"[" * 100_000, 0, "its header: is nested more than"),
        (b"[1]", 0, "its header: expected an object"),
        (b"\xff", 0, "its header"),
        (b"", 0, "has 8 bytes, and a header that ends at byte 8"),
    ],
)
def test_a_header_that_does_not_add_up_is_named(
    tmp_path: Path, tree: Any, data: int, problem: str
) -> None:
    path = write(tmp_path / "f", tree, data)
    if problem == "has 24 bytes more":
        size = path.stat().st_size
        problem = f"has {size} bytes where its header describes {size + 1}"
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_a_header_longer_than_its_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for length in (100, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CheckpointError, match=rf"has 10 bytes, and .* at byte {length + 8:,}"):
            read_header(path)
    path.write_bytes(struct.pack("<Q", 50 << 20))
    with path.open("r+b") as opened:
        opened.truncate(60 << 20)
    with pytest.raises(CheckpointError, match="has a header of 52,428,800 bytes, over"):
        read_header(path)
