"""An answer's text, from its tokens as they come."""

from mixtura.engine.stopping import StopText
from mixtura.tokenizers import TextStream


class AnswerText:
    """Pieces of text that are sure to be part of the answer; `stopped` once a stop text came."""

    def __init__(self, text: TextStream, stop: StopText) -> None:
        self._text, self._stop = text, stop

    @property
    def stopped(self) -> bool:
        return self._stop.met

    def push(self, token: int) -> str:
        return self._stop.push(self._text.push(token))

    def finish(self) -> str:
        """What was held back, once it is known that nothing more comes."""
        return self._stop.push(self._text.finish()) + self._stop.rest()
