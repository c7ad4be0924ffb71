"""Parts of a fetch that no command shows; tests/cli/test_models_command.py has the rest."""

import shutil
from pathlib import Path
from threading import Event, Thread

import pytest

from mixtura.checkpoints.model_fetch import _bytes_below, _reason


def test_bytes_below_counts_while_folders_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "stays").write_text("12345", encoding="utf-8")
    ended = Event()

    def come_and_go() -> None:
        while not ended.is_set():
            inner = tmp_path / "outer" / "inner"
            inner.mkdir(parents=True)
            (inner / "file").write_text("x", encoding="utf-8")
            shutil.rmtree(tmp_path / "outer")

    other = Thread(target=come_and_go)
    other.start()
    try:
        assert {_bytes_below(tmp_path) for _ in range(5000)} <= {5, 6}
    finally:
        ended.set()
        other.join()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: a\nERROR: first\nERROR: No matching distribution\n", "No matching distribution"),
        ("ERROR: Exception:\nTraceback (most recent call last):\nOSError: full\n", "OSError: full"),
        ("killed\n\n", "killed"),
        ("", "it said nothing"),
    ],
)
def test_reason_is_the_line_that_says_why(said: str, reason: str) -> None:
    assert _reason(said) == reason
