"""Text that ends an answer."""

from collections.abc import Sequence


class StopText:
    """Hands text on until one of `stops` appears, which is kept back.

    The one that is complete first ends it; of two that end at the same letter the longer. With
    `opening`, white space at the very beginning is handed on unseen, so that an answer may open
    with a blank line even where a blank line ends it.
    """

    def __init__(self, stops: Sequence[str] = (), *, opening: bool = False) -> None:
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.begun = not opening
        self.met = False

    def push(self, piece: str) -> str:
        """The text that is now sure to be part of the answer."""
        if not self.stops:
            return piece
        opening = ""
        if not self.begun:
            opening = piece[: len(piece) - len(piece.lstrip())]
            piece = piece[len(opening) :]
            self.begun = bool(piece)
        text = self.held + piece
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            _, begin = min(found)
            self.met, self.held = True, ""
            return opening + text[:begin]
        sure = len(text) - max(_beginning(stop, text) for stop in self.stops)
        self.held = text[sure:]
        return opening + text[:sure]

    def rest(self) -> str:
        """What was held back, once it is known that nothing more comes."""
        held, self.held = self.held, ""
        return held


def _beginning(stop: str, text: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
