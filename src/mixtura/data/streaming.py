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

    def __init__(
        self, decode: Callable[[Sequence[int]], str], after: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        # Tokens shown last. Some decoders treat the first token of a text in their own way, so
        # new ones are decoded behind these.
        self._shown = list(after[-_BEHIND:])
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._waiting.append(token)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._shown, self._waiting = self._waiting, []
        return text

    def finish(self) -> str:
        """What is left: an unfinished character, as the replacement character."""
        text = self._new_text()
        self._shown, self._waiting = [], []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._shown)
        return self._decode([*self._shown, *self._waiting])[len(before) :]
