"""Reads the user's input in a chat, and keeps a history of the lines."""

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType

from mixtura.cli.answers import note
from mixtura.errors import MixturaError

QUOTES = '"""'
_MOST_LINES = 1000
_MOST_BYTES = 2**20


class LineEditor:
    """Reads the user's turns; on a terminal, with line editing and, if `keeps`, a history."""

    def __init__(self, *, keeps: bool = True) -> None:
        # Invalid UTF-8 bytes become surrogates, and the tokenizer refuses only the turn with them.
        # Without this setting `input` would raise UnicodeDecodeError and end the chat.
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        self._interactive = sys.stdin.isatty()
        self._history = _history(keeps=keeps) if self._interactive else None

    def said(self) -> str | None:
        """Return the user's next text; None at the end of the input, or after Ctrl-C at the prompt.

        A line that ends with a backslash continues on the next line. Three quotation marks begin a
        text of several lines, and three more end it.
        """
        line = self._line("> ")
        if line is None:
            return None
        if line.startswith(QUOTES):
            return self._quoted(line.removeprefix(QUOTES))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            line = self._line("... ")
            if line is None:
                return None
            lines.append(line)
        return "\n".join(lines)

    def close(self) -> None:
        if self._history is not None:
            self._history.keep()

    def _quoted(self, first: str) -> str | None:
        lines = [first]
        while not lines[-1].rstrip().endswith(QUOTES):
            line = self._line("... ")
            if line is None:
                note(f"the text that {QUOTES} began has no end, and was left out")
                return None
            lines.append(line)
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        try:
            return input(prompt if self._interactive else "")
        except (EOFError, KeyboardInterrupt):
            if self._interactive:
                print()
            return None


class _History:
    """The lines of earlier chats for the arrow keys; a file keeps the newest 1000 lines."""

    def __init__(self, readline: ModuleType, path: Path) -> None:
        self._readline, self._path = readline, path
        for line in self._lines():
            readline.add_history(line)
        self._before = readline.get_current_history_length()

    def keep(self) -> None:
        """Add this chat's lines to the history file, which only its owner can read."""
        edit = self._readline
        numbers = range(self._before + 1, edit.get_current_history_length() + 1)
        new = [edit.get_history_item(number) for number in numbers]
        if not new:
            return
        from mixtura.files import atomic_text

        # The file is read again, since another chat may have added lines meanwhile.
        lines = [*self._lines(), *new][-_MOST_LINES:]
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = "".join(f"{line}\n" for line in lines if line)
            atomic_text(self._path, text.encode("utf-8", "replace").decode(), mode=0o600)
        except (MixturaError, OSError) as error:
            note(f"the history of this chat is not kept: {error}")

    def _lines(self) -> list[str]:
        try:
            if not self._path.is_file():
                return []
            with self._path.open("rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(max(0, size - _MOST_BYTES))
                return handle.read().decode("utf-8", "replace").split("\n")[:-1]
        except OSError:
            return []


def history_path() -> Path:
    """Return the path of the history file.

    It is in the folder that MIXTURA_STATE names, or else in `mixtura` in the user's state folder.
    """
    own = os.environ.get("MIXTURA_STATE")
    if own:
        return Path(own) / "chat_history"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mixtura" / "chat_history"


def _history(*, keeps: bool) -> _History | None:
    """Return the history; None if `keeps` is false, or if this Python lacks readline."""
    with suppress(ImportError):
        # The import itself adds line editing to input(), even if no history is kept.
        import readline

        if keeps:
            return _History(readline, history_path())
    return None
