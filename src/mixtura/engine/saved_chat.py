"""A conversation as a JSON file with its system message and its turns."""

import json
from pathlib import Path
from typing import Literal

from mixtura.config import Config
from mixtura.engine.chat_format import Exchange
from mixtura.engine.conversation import Conversation
from mixtura.errors import ConfigError, DataError, StorageError
from mixtura.files import atomic_text
from mixtura.json_reader import read_object

# Enough for some thousand turns. A larger file is refused.
_MOST_BYTES = 64 * 2**20


class SavedTurn(Config):
    said: str
    answer: str


class SavedChat(Config):
    kind: Literal["mixtura chat"]
    model: str = ""
    """the name of the model, for information; any model may continue the chat"""
    system: str = ""
    turns: tuple[SavedTurn, ...] = ()


def save_chat(path: Path, conversation: Conversation, model: str) -> int:
    """Write the turns that are remembered; returns their number.

    A saved chat at `path` is replaced, whole or not at all. Raises StorageError where `path` is any
    other file.
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
    """Replace the conversation by the saved one; returns the number of its turns.

    Raises DataError for a file that is no saved chat, and ConfigError for a system message where
    the model has no chat template. An error leaves the conversation unchanged.
    """
    chat = read_chat(path)
    conversation.system = chat.system
    conversation.restore([Exchange(turn.said, turn.answer) for turn in chat.turns])
    return len(chat.turns)


def read_chat(path: Path) -> SavedChat:
    """The chat in a file. Raises DataError for a file that is no saved chat."""
    try:
        return SavedChat.parse(read_object(path, DataError, _MOST_BYTES), str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; '/save FILE' writes one") from None
    except ConfigError as error:
        raise DataError(f"{error}; '/save FILE' writes a chat") from error
