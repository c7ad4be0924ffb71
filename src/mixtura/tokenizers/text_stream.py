"""Text from tokens, one token at a time."""

from collections.abc import Callable, Sequence

# A decoder writes it for bytes that are no character, or not yet one.
_REPLACEMENT = "\ufffd"
# From the last 16 tokens a decoder sees that the text does not begin here.
_CONTEXT_TOKENS = 16


class TextStream:
    """Turns tokens into text one by one; half a character is held back.

    The texts together, `finish` included, are `decode` of all tokens at once. With `after` they are
    what `decode` adds behind those tokens, which must be whole characters.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], after: Sequence[int] = ()) -> None:
        self._decode = decode
        # The last tokens shown, and their text. Some decoders treat the first token of a text in a
        # way of their own, so new tokens are decoded behind these.
        self._shown = list(after[-_CONTEXT_TOKENS:])
        self._before = decode(self._shown)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._pending.append(token)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._show()
        return text

    def finish(self) -> str:
        """The rest: the replacement character for an unfinished character, else nothing."""
        text = self._new_text()
        self._show()
        return text

    def _show(self) -> None:
        before = self._decode(self._pending)
        # Spaces alone do not count as the beginning: some decoders drop them there.
        self._shown = self._pending if before else [*self._shown, *self._pending]
        self._before = before or self._decode(self._shown)
        self._pending = []

    def _new_text(self) -> str:
        return self._decode([*self._shown, *self._pending])[len(self._before) :]
