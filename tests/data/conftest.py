"""What several tests of data share."""

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """Twenty documents in two folders of domains, and four files that are none."""
    folder = tmp_path / "corpus"
    for domain in ("prose", "sums"):
        (folder / domain).mkdir(parents=True)
    for n in range(10):
        (folder / "prose" / f"{n}.txt").write_text(f"Café number {n}.\n", encoding="utf-8")
        (folder / "sums" / f"{n}.txt").write_text(f"{n} + {n} = {2 * n}\n", encoding="utf-8")
    (folder / "binary.bin").write_bytes(b"ab\0cd")
    (folder / "empty.txt").write_bytes(b" \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "broken.txt").symlink_to("nowhere")
    return folder
