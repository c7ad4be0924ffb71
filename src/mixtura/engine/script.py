"""How a conversation is laid out as the tokens that a model reads.

A base model continues one growing text; a model with a chat template talks through roles.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from mixtura.engine.chat_template import ChatTemplate, Message, message
from mixtura.errors import ConfigError
from mixtura.tokenizers import CheckpointTokenizer, Tokenizer
from mixtura.tokenizers.tokenizer import to_utf8

BLANK_LINE = "\n\n"
# One of Unicode's noncharacters, which no text holds. It is set behind the first letter of what a
# speaker wrote that looks like a special token, so that nothing a template cuts off makes it one.
_BREAK = "\ufdd0"


class Exchange(NamedTuple):
    """A turn that is over."""

    said: str
    answer: str


class Script(ABC):
    """What is read before an answer, and what ends one."""

    stops: tuple[str, ...]
    """texts that end an answer"""
    ends: frozenset[int]
    """tokens that end an answer"""
    continues: bool
    """whether an answer goes on with the text before it, or is a text of its own"""

    @abstractmethod
    def prompt(self, past: Sequence[Exchange], said: str) -> list[int]:
        """Raises ConfigError or DataError for what cannot be laid out."""


def script_for(tokenizer: Tokenizer, system: str = "") -> Script:
    """By roles where the model came with a chat template, else one growing text.

    Raises ConfigError for a template that is none, and for a `system` where there is none.
    """
    if isinstance(tokenizer, CheckpointTokenizer) and tokenizer.chat_template is not None:
        return Roles(tokenizer, tokenizer.chat_template, system)
    if system:
        raise ConfigError(
            f"system={system!r:.60} needs a model with a chat template, and this one has none; "
            "say it in the first turn"
        )
    return PlainText(tokenizer)


class PlainText(Script):
    """What was said, a line break, the answer, a blank line, and so on.

    A base model has no roles, so no marks name the speaker; the blank line is what ends an
    answer.
    """

    stops = (BLANK_LINE,)
    continues = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.ends = tokenizer.ends

    def prompt(self, past: Sequence[Exchange], said: str) -> list[int]:
        texts = [f"{one.said}\n{one.answer}".rstrip("\n") + BLANK_LINE for one in past]
        tokens: list[int] = []
        # Text by text, so that a turn's tokens stay the same when others are forgotten.
        for text in (*texts, f"{said}\n"):
            tokens += self._tokenizer.encode(text, continues=bool(tokens))
        return [*self._tokenizer.begin, *tokens]


class Roles(Script):
    """A system's word first, if any, then user and assistant in turn, as the template writes them.

    The names of special tokens stand for them where the template wrote them, and are plain text
    where a speaker did: a text that says that a turn ended does not end it.
    """

    stops = ()
    continues = False

    def __init__(self, tokenizer: CheckpointTokenizer, template: str, system: str = "") -> None:
        self._tokenizer = tokenizer
        self._origin = tokenizer.template_origin
        self._template = ChatTemplate(template, tokenizer.facts.names, self._origin)
        self._system = [message("system", system)] if system else []
        longest_first = sorted(filter(None, tokenizer.special), key=len, reverse=True)
        self._special = re.compile(_any_of(longest_first))
        broken = _any_of([_broken(name) for name in longest_first])
        self._broken = re.compile(f"({broken})|{_BREAK}")
        self.ends = tokenizer.ends | self._end_of_turn()

    def prompt(self, past: Sequence[Exchange], said: str) -> list[int]:
        messages = list(self._system)
        for one in past:
            messages += [message("user", one.said), message("assistant", one.answer)]
        messages.append(message("user", said))
        for one in messages:
            to_utf8(one["content"])
        tokens = self._encode(self._template.render([self._quoted(one) for one in messages]))
        if not tokens:
            raise ConfigError(f"{self._origin} makes no text of this conversation; mend it")
        return tokens

    def _end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes right after an answer, if any."""
        answer = "0f8b1c"
        talk = [message("user", "a"), message("assistant", answer)]
        rendered = self._template.render([*self._system, *talk], answer=False)
        _, written, after = rendered.rpartition(answer)
        found = self._special.match(after.lstrip()) if written else None
        return frozenset() if found is None else frozenset({self._tokenizer.special[found[0]]})

    def _quoted(self, one: Message) -> Message:
        text = one["content"].replace(_BREAK, "")
        return {**one, "content": self._special.sub(lambda found: _broken(found[0]), text)}

    def _encode(self, text: str) -> list[int]:
        """Odd pieces are what was quoted, or None where the template tore a quotation apart."""
        pieces = self._broken.split(text)
        tokens: list[int] = []
        for number, piece in enumerate(pieces):
            if not piece:
                continue
            if number % 2:
                quoted = piece.replace(_BREAK, "")
                tokens += self._tokenizer.encode(quoted, continues=bool(tokens))
            else:
                tokens += self._tokenizer.encode_with_marks(piece, continues=bool(tokens))
        return tokens


def _any_of(names: Sequence[str]) -> str:
    """A pattern for any of the names, the first that fits; for no names it never fits."""
    return "|".join(map(re.escape, names)) or "(?!)"


def _broken(name: str) -> str:
    return name[:1] + _BREAK + name[1:]
