"""Text from tokens as they come."""

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that are no character (yet).
_REPLACEMENT = "\ufffd"
# So many of the tokens before are enough to tell that a text has begun.
_BEHIND = 16


class TextStream:
    """Turns tokens into text one by one, never showing half a character.

    The pieces together, `finish` included, are `decode` of all the tokens at once, or what it adds
    behind the tokens of `after`, which are whole characters.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], after: Sequence[int] = ()) -> None:
        self._decode = decode
        # Tokens shown last, and their text. Some decoders treat the first token of a text in their
        # own way, so new ones are decoded behind these.
        self._shown = list(after[-_BEHIND:])
        self._before = decode(self._shown)
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._waiting.append(token)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._show()
        return text

    def finish(self) -> str:
        """What is left: an unfinished character, as the replacement character."""
        text = self._new_text()
        self._show()
        return text

    def _show(self) -> None:
        before = self._decode(self._waiting)
        # Spaces alone are no beginning of a text, since some decoders drop them there.
        self._shown = self._waiting if before else [*self._shown, *self._waiting]
        self._before = before or self._decode(self._shown)
        self._waiting = []

    def _new_text(self) -> str:
        return self._decode([*self._shown, *self._waiting])[len(self._before) :]
