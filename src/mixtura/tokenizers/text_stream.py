"""Decodes tokens to text, one token at a time."""

from collections.abc import Callable, Sequence

# A decoder writes this character for invalid bytes, and for the bytes of an unfinished character.
_REPLACEMENT = "\ufffd"
# Up to 16 tokens before a stream are decoded together with its first token, so that this token
# is not decoded as the first token of a text.
_CONTEXT_TOKENS = 16


class TextStream:
    """Decodes tokens one by one; an unfinished character is returned once it is complete.

    The results of all calls of `push` and of `finish` join to the text that `decode` returns for
    all tokens. The tokens `after` precede the first new token. Their text is not returned, and must
    not end within a character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], after: Sequence[int] = ()) -> None:
        self._decode = decode
        # Some decoders treat the first token of a text differently from the others. So a new token
        # is decoded after the tokens returned last, `_shown`, and the text of these, `_before`, is
        # cut off.
        self._shown = list(after[-_CONTEXT_TOKENS:])
        self._before = decode(self._shown)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Return the text that `token` completes; empty while a character is unfinished."""
        self._pending.append(token)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._show()
        return text

    def finish(self) -> str:
        """Return the remaining text: U+FFFD for an unfinished character, else empty."""
        text = self._new_text()
        self._show()
        return text

    def _show(self) -> None:
        before = self._decode(self._pending)
        # Some decoders drop spaces at a text's beginning. If the pending tokens alone thus have no
        # text, the earlier tokens stay in front of them.
        self._shown = self._pending if before else [*self._shown, *self._pending]
        self._before = before or self._decode(self._shown)
        self._pending = []

    def _new_text(self) -> str:
        return self._decode([*self._shown, *self._pending])[len(self._before) :]
