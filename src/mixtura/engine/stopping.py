"""Text that ends an answer."""


class StopText:
    """Hands text on until `stop` appears, which is kept back; an empty `stop` never appears.

    White space at the very beginning is handed on unseen, so that an answer may open with a blank
    line even where a blank line ends it.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.held = ""
        self.begun = False
        self.met = False

    def push(self, piece: str) -> str:
        """The text that is now sure to be part of the answer."""
        if not self.stop:
            return piece
        opening = ""
        if not self.begun:
            opening = piece[: len(piece) - len(piece.lstrip())]
            piece = piece[len(opening) :]
            self.begun = bool(piece)
        text = self.held + piece
        before, found, _ = text.partition(self.stop)
        if found:
            self.met, self.held = True, ""
            return opening + before
        sure = len(text) - self._possible_beginning(text)
        self.held = text[sure:]
        return opening + text[:sure]

    def rest(self) -> str:
        """What was held back, once it is known that nothing more comes."""
        held, self.held = self.held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which `stop` begins."""
        longest = min(len(text), len(self.stop) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(self.stop[:n])), 0)
