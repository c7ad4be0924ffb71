"""Runs a chat session: answers the user's turns, and runs commands that begin with a slash."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mixtura.cli.answers import note, plural, show, summary
from mixtura.cli.line_editor import QUOTES, LineEditor
from mixtura.errors import ConfigError, DataError, MixturaError

if TYPE_CHECKING:
    from mixtura.engine.conversation import Conversation, Turn

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_HELP = f"""\
/system TEXT   set the system message of a model with roles, from the next turn on; alone: none
/regenerate    answer what was said last once more
/save FILE     write what is remembered, as JSON
/load FILE     go on from a chat that was saved
/reset         forget everything
/quit          leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one; {QUOTES} begins several
lines that end with {QUOTES}."""


class Session:
    """Reads turns from `editor`, and prints the model's answers, until the user leaves."""

    def __init__(self, conversation: "Conversation", editor: LineEditor, model: str) -> None:
        self._conversation, self._editor, self._model = conversation, editor, model
        self._commands: dict[str, Callable[[str], Iterator[Turn]]] = {
            "help": self._help,
            "system": self._system,
            "regenerate": self._regenerate,
            "save": self._save,
            "load": self._load,
            "reset": self._reset,
        }

    def turns(self) -> "Iterator[Turn]":
        """Yield each turn after its answer has been printed."""
        while (said := self._editor.said()) is not None:
            if said == "/quit":
                return
            yield from self._follow(said)

    def _follow(self, said: str) -> "Iterator[Turn]":
        found = _COMMAND.fullmatch(said)
        name, text = (found[1], found[2] or "") if found else ("", "")
        try:
            if name in self._commands:
                yield from self._commands[name](text.strip())
            # A lone unknown "/word" is refused, but "/usr is a folder" is a turn like any other.
            elif found and not text:
                known = ", ".join(f"/{one}" for one in (*self._commands, "quit"))
                note(f"{said} is no command; there are {known}")
            elif said.strip():
                yield from _answered(self._conversation.say(said))
        except MixturaError as error:
            note(str(error))

    def _help(self, text: str) -> "Iterator[Turn]":
        _refuse_text("help", text)
        for line in _HELP.splitlines():
            note(line)
        yield from ()

    def _system(self, text: str) -> "Iterator[Turn]":
        self._conversation.system = text
        note("the system message is set" if text else "the system message is empty")
        yield from ()

    def _regenerate(self, text: str) -> "Iterator[Turn]":
        _refuse_text("regenerate", text)
        yield from _answered(self._conversation.again())

    def _save(self, text: str) -> "Iterator[Turn]":
        from mixtura.engine.saved_chat import save_chat

        path = _file("save", text)
        count = save_chat(path, self._conversation, self._model)
        note(f"{plural(count, 'turn')} saved in {path}")
        yield from ()

    def _load(self, text: str) -> "Iterator[Turn]":
        from mixtura.engine.saved_chat import load_chat

        path = _file("load", text)
        count = load_chat(path, self._conversation)
        note(f"{plural(count, 'turn')} of {path}; the chat goes on from there")
        yield from ()

    def _reset(self, text: str) -> "Iterator[Turn]":
        _refuse_text("reset", text)
        self._conversation.reset()
        note("all turns are forgotten")
        yield from ()


def _answered(turn: "Turn") -> "Iterator[Turn]":
    if turn.forgotten:
        note(f"the context is full: forgot {plural(turn.forgotten, 'turn')} from its beginning")
    show(turn.answer)
    note(summary(turn.answer.result, stop="a blank line ended it"))
    yield turn


def _refuse_text(name: str, text: str) -> None:
    if text:
        raise ConfigError(f"/{name} stands alone, and {text!r:.60} follows it; say it without")


def _file(name: str, text: str) -> Path:
    if not text:
        raise DataError(f"/{name} needs the name of a file, as in /{name} chat.json")
    return Path(text).expanduser()
