"""Where the line editor of a chat keeps its history, on a real terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
from mixtura.cli.line_editor import LineEditor
editor = LineEditor(keeps={keeps})
while editor.said() != "end":
    pass
editor.close()
"""


def typed(text: str, keeps: bool, state: Path) -> None:
    """Type into an editor that is told where to keep its state."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.format(keeps=keeps)],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env={**os.environ, "MIXTURA_STATE": "", "XDG_STATE_HOME": str(state), "TERM": "dumb"},
    )
    os.close(terminal)
    os.write(master, text.encode())
    _, said = process.communicate(timeout=60)
    os.close(master)
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize("keeps", [True, False])
def test_the_users_state_folder(tmp_path: Path, keeps: bool) -> None:
    typed('one\\\n two\n"""\nthree\n"""\nend\n', keeps, tmp_path)
    kept = tmp_path / "mixtura" / "chat_history"
    assert kept.exists() == keeps
    if keeps:
        assert kept.read_text(encoding="utf-8") == 'one\\\n two\n"""\nthree\n"""\nend\n'
        assert kept.stat().st_mode & 0o777 == 0o600
        assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "mixtura").write_text("", encoding="utf-8")
    with pytest.raises(AssertionError, match="the history of this chat is not kept"):
        typed("one\nend\n", True, tmp_path)
