"""Talking with a model, turn by turn, as far as its context goes."""

from collections.abc import Sequence
from dataclasses import dataclass

from mixtura.engine.generate import Stream, Writer
from mixtura.engine.kv_cache import KVKind
from mixtura.engine.sampling import Sampling
from mixtura.engine.script import Exchange, script_for
from mixtura.engine.stopping import StopText
from mixtura.errors import ConfigError, MixturaError
from mixtura.models import LanguageModel
from mixtura.tokenizers import Tokenizer

# A model made for 128k positions would take gigabytes for a chat that rarely needs them.
USUAL_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said, and the answer: a stream to iterate over, with a `result` once it ended."""

    said: str
    answer: Stream
    forgotten: int
    """how many of the oldest turns had to go to make room for this one"""

    @property
    def exchange(self) -> Exchange:
        """As far as the answer came."""
        return Exchange(self.said, self.answer.result.text)


class Conversation:
    """Turns that the model reads again with each new one, as far as its context goes.

    Through roles where the tokenizer has a chat template, which `system` needs; ConfigError
    otherwise, and for a template that is none. The cache has `context` positions, by default the
    model's own, but no more than USUAL_CONTEXT, and stores them as `kv` says (see `Context`).
    """

    def __init__(
        self,
        decoder: LanguageModel,
        tokenizer: Tokenizer,
        sampling: Sampling,
        max_tokens: int,
        system: str = "",
        context: int | None = None,
        kv: KVKind | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.system = system
        size = min(decoder.config.context, USUAL_CONTEXT) if context is None else context
        self._writer = Writer(decoder, tokenizer, sampling, size, kv)
        self._max_tokens = max_tokens
        self._past: list[Exchange] = []
        self._newest: Turn | None = None

    @property
    def turns(self) -> list[Exchange]:
        """What was said and answered, as far as it is remembered."""
        return self._past + ([] if self._newest is None else [self._newest.exchange])

    @property
    def system(self) -> str:
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        """From the next turn on. Raises ConfigError where the model knows no roles."""
        self._script = script_for(self._tokenizer, text)
        self._system = text

    def say(self, said: str) -> Turn:
        """The next turn; the answer before it must have ended. ConfigError if it fits no context.

        The oldest turns are forgotten until `max_tokens` have room, or half the context has.
        """
        capacity = self._writer.context
        room = capacity - min(self._max_tokens, capacity // 2)
        past = self.turns
        forgotten = 0
        prompt = self._script.prompt(past, said)
        while len(prompt) > room and forgotten < len(past):
            forgotten += 1
            prompt = self._script.prompt(past[forgotten:], said)
        script = self._script
        answer = self._writer.write(
            prompt,
            self._max_tokens,
            StopText(script.stops, opening=True),
            script.ends,
            continues=script.continues,
        )
        self._past, self._newest = past[forgotten:], Turn(said, answer, forgotten)
        return self._newest

    def again(self) -> Turn:
        """What was said last, answered anew. Raises ConfigError where nothing was said."""
        before = self.turns
        if not before:
            raise ConfigError("nothing was said that could be answered anew; say something first")
        self.restore(before[:-1])
        try:
            return self.say(before[-1].said)
        except MixturaError:
            self.restore(before)
            raise

    def restore(self, turns: Sequence[Exchange]) -> None:
        """Remember these turns and no others."""
        self._past, self._newest = list(turns), None

    def reset(self) -> None:
        """Forget everything that was said."""
        self.restore([])
