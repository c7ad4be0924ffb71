"""A conversation as a file: JSON with the system's text and the turns."""

import json
from pathlib import Path
from typing import Literal

from mixtura.config import Config
from mixtura.engine.conversation import Conversation
from mixtura.engine.script import Exchange
from mixtura.errors import ConfigError, DataError, StorageError
from mixtura.files import atomic_text
from mixtura.json_reader import read_object

# Some thousand turns; a larger file is none that a chat has saved.
_MOST_BYTES = 64 * 2**20


class SavedTurn(Config):
    said: str
    answer: str


class SavedChat(Config):
    kind: Literal["mixtura chat"]
    model: str = ""
    """what it was talked with, for a reader; any model may go on from it"""
    system: str = ""
    turns: tuple[SavedTurn, ...] = ()


def save_chat(path: Path, conversation: Conversation, model: str) -> int:
    """Write what is remembered; gives the number of turns.

    Replaces a saved chat, whole or not at all. Raises StorageError where the path is anything else.
    """
    if path.exists():
        try:
            read_chat(path)
        except DataError as error:
            raise StorageError(
                f"{path}: already exists and is no saved chat; choose another name"
            ) from error
    turns = tuple(SavedTurn(said=one.said, answer=one.answer) for one in conversation.turns)
    chat = SavedChat(kind="mixtura chat", model=model, system=conversation.system, turns=turns)
    atomic_text(path, json.dumps(chat.model_dump(), indent=1) + "\n")
    return len(turns)


def load_chat(path: Path, conversation: Conversation) -> int:
    """Remember the saved turns and no others, under the saved system; gives their number.

    Raises DataError for another file, and ConfigError for a system where the model knows no roles;
    the conversation is then as before.
    """
    chat = read_chat(path)
    conversation.system = chat.system
    conversation.restore([Exchange(turn.said, turn.answer) for turn in chat.turns])
    return len(chat.turns)


def read_chat(path: Path) -> SavedChat:
    """Raises DataError."""
    try:
        return SavedChat.parse(read_object(path, DataError, _MOST_BYTES), str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; '/save FILE' writes one") from None
    except ConfigError as error:
        raise DataError(f"{error}; '/save FILE' writes a chat") from error
