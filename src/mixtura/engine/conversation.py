"""Talking with a model, turn by turn, as far as its context goes."""

from dataclasses import dataclass

from mixtura.data import Tokenizer
from mixtura.engine.generate import Stream, Writer
from mixtura.engine.kv_cache import KVKind
from mixtura.engine.sampling import Sampling
from mixtura.engine.script import Exchange, script_for
from mixtura.models import LanguageModel

# A model made for 128k positions would take gigabytes for a chat that rarely needs them.
USUAL_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said, and the answer: a stream to iterate over, with a `result` once it ended."""

    said: str
    answer: Stream
    forgotten: int
    """how many of the oldest turns had to go to make room for this one"""


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
        self._script = script_for(tokenizer, system)
        size = min(decoder.config.context, USUAL_CONTEXT) if context is None else context
        self._writer = Writer(decoder, tokenizer, sampling, size, kv)
        self._max_tokens = max_tokens
        self.turns: list[Turn] = []

    def say(self, said: str) -> Turn:
        """The next turn; the answer before it must have ended. ConfigError if it fits no context.

        The oldest turns are forgotten until `max_tokens` have room, or half the context has.
        """
        capacity = self._writer.context.capacity
        room = capacity - min(self._max_tokens, capacity // 2)
        past = [Exchange(turn.said, turn.answer.result.text) for turn in self.turns]
        forgotten = 0
        prompt = self._script.prompt(past, said)
        while len(prompt) > room and forgotten < len(past):
            forgotten += 1
            prompt = self._script.prompt(past[forgotten:], said)
        script = self._script
        answer = self._writer.write(
            prompt, self._max_tokens, script.stop, script.ends, continues=script.continues
        )
        turn = Turn(said, answer, forgotten)
        self.turns = [*self.turns[forgotten:], turn]
        return turn

    def reset(self) -> None:
        """Forget everything that was said."""
        self.turns = []
