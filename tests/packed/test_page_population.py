"""The pages of a packed file are mapped before a first prompt needs them."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixtura.packed import page_population
from mixtura.packed.file import _mapped

MB = 1 << 20
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


def mapped(folder: Path) -> Tensor:
    """8 MB of a file without its first 100 bytes, as behind a header."""
    path = folder / "data"
    path.write_bytes(bytes(8 * MB))
    return _mapped(path)[100:]


def resident(data: Tensor) -> int:
    """Bytes of the mapping that the process has mapped pages for."""
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        head = line.split()[0]
        if "-" in head:
            begin, end = (int(part, 16) for part in head.split("-"))
            found = begin <= data.data_ptr() < end
        elif found and head == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("the mapping is listed")


@needs_linux
def test_populate_maps_every_page(tmp_path: Path) -> None:
    data = mapped(tmp_path)
    assert resident(data) < 8 * MB
    thread = page_population.populate(data)
    assert thread is not None
    thread.join()
    assert resident(data) == 8 * MB


def test_populate_leaves_a_file_larger_than_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_population, "free_bytes", lambda: 8 * MB - 101)
    assert page_population.populate(mapped(tmp_path)) is None


@needs_linux
def test_populate_ends_where_the_kernel_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def refusing(start: int, _size: int, _advice: int) -> int:
        calls.append(start)
        return -1

    monkeypatch.setattr(page_population, "_madvise", lambda: refusing)
    data = mapped(tmp_path)
    thread = page_population.populate(data)
    assert thread is not None
    thread.join()
    assert len(calls) == 1
    assert torch.equal(data[:3], torch.zeros(3, dtype=torch.uint8))
