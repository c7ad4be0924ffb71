"""Chat formats: how a conversation becomes the tokens that a model reads.

A base model continues one growing text. A model with a chat template reads messages with roles.
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
# A noncharacter of Unicode, which no text contains. Set after the first letter of a special token's
# name in a message, it keeps the name from being read as the token, even if a template trims it.
_BREAK = "\ufdd0"


class Exchange(NamedTuple):
    """A question and its answer, as text."""

    said: str
    answer: str


class ChatFormat(ABC):
    """How a conversation becomes a prompt, and what ends the answer."""

    stops: tuple[str, ...]
    """texts that end an answer"""
    ends: frozenset[int]
    """tokens that end an answer"""
    continues: bool
    """whether an answer continues the text of the prompt, or is a text of its own"""

    @abstractmethod
    def prompt(self, past: Sequence[Exchange], said: str) -> list[int]:
        """The tokens of the `past` turns and of the new question `said`.

        Raises ConfigError or DataError for a conversation that the format cannot express.
        """


def chat_format_for(tokenizer: Tokenizer, system: str = "") -> ChatFormat:
    """`Roles` where the tokenizer has a chat template, else `PlainText`.

    Raises ConfigError for a template that is not valid, and for a `system` without a template.
    """
    if isinstance(tokenizer, CheckpointTokenizer) and tokenizer.chat_template is not None:
        return Roles(tokenizer, tokenizer.chat_template, system)
    if system:
        raise ConfigError(
            f"system={system!r:.60} needs a model with a chat template, and this one has none; "
            "say it in the first turn"
        )
    return PlainText(tokenizer)


class PlainText(ChatFormat):
    """A question, a line break, the answer, a blank line, and so on.

    A base model has no roles, so the text does not name the speakers. A blank line ends an answer.
    """

    stops = (BLANK_LINE,)
    continues = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.ends = tokenizer.ends

    def prompt(self, past: Sequence[Exchange], said: str) -> list[int]:
        texts = [f"{one.said}\n{one.answer}".rstrip("\n") + BLANK_LINE for one in past]
        tokens: list[int] = []
        # Each turn is encoded by itself, so its tokens stay the same when older turns are removed.
        for text in (*texts, f"{said}\n"):
            tokens += self._tokenizer.encode(text, continues=bool(tokens))
        return [*self._tokenizer.begin, *tokens]


class Roles(ChatFormat):
    """A system message, if any, then messages of user and assistant, as the template writes them.

    Where the template wrote the name of a special token, the name becomes that token. In a message
    the name stays plain text, so a message cannot end its own turn.
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
        """The special token that the template writes directly after an answer, if any."""
        answer = "0f8b1c"
        talk = [message("user", "a"), message("assistant", answer)]
        rendered = self._template.render([*self._system, *talk], answer=False)
        _, written, after = rendered.rpartition(answer)
        found = self._special.match(after.lstrip()) if written else None
        return frozenset() if found is None else frozenset({self._tokenizer.special[found[0]]})

    def _quoted(self, one: Message) -> Message:
        """The message with `_BREAK` in each name of a special token."""
        text = one["content"].replace(_BREAK, "")
        return {**one, "content": self._special.sub(lambda found: _broken(found[0]), text)}

    def _encode(self, text: str) -> list[int]:
        """The tokens of a rendered text.

        `split` puts the names with a `_BREAK` at odd places. A place is None where the template cut
        a name apart, so that its `_BREAK` alone is left.
        """
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
    """A pattern that matches any of the names, tried in order; without names it never matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def _broken(name: str) -> str:
    """The name with `_BREAK` after its first letter."""
    return name[:1] + _BREAK + name[1:]
