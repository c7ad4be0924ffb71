"""Stop texts, which end an answer."""

from collections.abc import Sequence


class StopText:
    """Passes text on until one of `stops` appears; the stop text itself is left out.

    The stop text that is complete first ends the answer; of two that end at the same character, the
    longer one is left out. With `opening`, white space at the beginning of the answer is passed on
    without a search. So an answer may begin with a blank line even if a blank line ends it.
    """

    def __init__(self, stops: Sequence[str] = (), *, opening: bool = False) -> None:
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.begun = not opening
        self.met = False

    def push(self, piece: str) -> str:
        """The next text that is certain to belong to the answer.

        A possible beginning of a stop text is held back.
        """
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
        """The text that was held back; for use once the text is complete."""
        held, self.held = self.held, ""
        return held


def _beginning(stop: str, text: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
