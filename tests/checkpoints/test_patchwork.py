"""Tensors mapped together from parts of files, against the same bytes copied."""

import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.checkpoints.hf import patchwork
from mixtura.checkpoints.hf.patchwork import FilePart, Patchwork

PAGE = mmap.PAGESIZE


def written(path: Path, size: int) -> bytes:
    content = torch.randint(256, (size,), dtype=torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    return content


def test_two_parts_meet_within_a_page(tmp_path: Path) -> None:
    # Bytes 100.. of the file come second and bytes 3 pages + 100.. first, 2.5 pages of each: both
    # lie 100 bytes into a page, and so does the tensor, but 2.5 pages on the second does not.
    file, half = tmp_path / "a", 2 * PAGE + PAGE // 2
    content = written(file, 6 * PAGE)
    parts = [FilePart(file, 3 * PAGE + 100, half, 0), FilePart(file, 100, half, half)]
    patch = Patchwork()
    found = patch.tensor((2, half), torch.uint8, parts)
    assert bytes(found[0].tolist()) == content[3 * PAGE + 100 : 3 * PAGE + 100 + half]
    assert bytes(found[1].tolist()) == content[100 : 100 + half]
    # Of the first part one whole page lies where the tensor wants it; the second was copied.
    assert patch.mapped == 1


def test_parts_of_whole_pages_are_mapped_whatever_their_order(tmp_path: Path) -> None:
    file = tmp_path / "a"
    content = written(file, 9 * PAGE)
    order = [5, 0, 7, 2]
    parts = [
        FilePart(file, page * PAGE + 8, PAGE, place * PAGE) for place, page in enumerate(order)
    ]
    patch = Patchwork()
    found = patch.tensor((4 * PAGE,), torch.uint8, parts)
    assert bytes(found.tolist()) == b"".join(
        content[page * PAGE + 8 : (page + 1) * PAGE + 8] for page in order
    )
    # Each part spans two pages of the tensor, neither of them whole: all of it is copied.
    assert patch.mapped == 0
    longer = [FilePart(file, 2 * PAGE * n + 8, 2 * PAGE, 2 * PAGE * n) for n in range(4)]
    patch.tensor((8 * PAGE,), torch.uint8, longer)
    assert patch.mapped == 4


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=5),
    starts=st.lists(st.integers(0, 3 * PAGE), min_size=5, max_size=5),
)
def test_any_parts_give_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], starts: list[int]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    content = file.read_bytes() if file.exists() else written(file, 7 * PAGE)
    parts, at = [], 0
    for size, start in zip(sizes, starts, strict=False):
        parts.append(FilePart(file, start, size, at))
        at += size
    found = Patchwork().tensor((at,), torch.uint8, parts)
    assert found.numpy().tobytes() == b"".join(
        content[part.offset : part.offset + part.size] for part in parts
    )


def test_writing_stays_private(tmp_path: Path) -> None:
    file = tmp_path / "a"
    content = written(file, 4 * PAGE)
    found = Patchwork().tensor((4 * PAGE,), torch.uint8, [FilePart(file, 0, 4 * PAGE, 0)])
    found.zero_()
    assert file.read_bytes() == content


def test_it_copies_where_mappings_have_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchwork, "MOST_MAPPINGS", 1)
    file = tmp_path / "a"
    content = written(file, 4 * PAGE)
    patch = Patchwork()
    parts = [FilePart(file, 2 * PAGE, 2 * PAGE, 0), FilePart(file, 0, 2 * PAGE, 2 * PAGE)]
    found = patch.tensor((4 * PAGE,), torch.uint8, parts)
    assert patch.mapped == 1
    assert found.numpy().tobytes() == content[2 * PAGE :] + content[: 2 * PAGE]


def test_it_outlives_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    content = written(file, 2 * PAGE)
    found = Patchwork().tensor((2 * PAGE,), torch.uint8, [FilePart(file, 0, 2 * PAGE, 0)])
    file.unlink()
    assert found.numpy().tobytes() == content
