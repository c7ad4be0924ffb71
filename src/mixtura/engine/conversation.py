"""A conversation with a model, turn by turn, within the model's context."""

from collections.abc import Sequence
from dataclasses import dataclass

from mixtura.engine.cache_plan import KVKind
from mixtura.engine.chat_format import Exchange, chat_format_for
from mixtura.engine.generate import Stream, Writer
from mixtura.engine.sampling import Sampling
from mixtura.engine.stop_text import StopText
from mixtura.errors import ConfigError, MixturaError
from mixtura.models import LanguageModel
from mixtura.tokenizers import Tokenizer

# A cache of 128k positions takes gigabytes, and few chats need so many.
USUAL_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer: a stream of text, whose `result` has the answer so far."""

    said: str
    answer: Stream
    forgotten: int
    """how many of the oldest turns were removed to make room for this turn"""

    @property
    def exchange(self) -> Exchange:
        """The question, and the answer so far."""
        return Exchange(self.said, self.answer.result.text)


class Conversation:
    """Turns of question and answer. Each prompt has the earlier turns, as far as they fit.

    Where the tokenizer has a chat template, the turns have roles. `system` is the system message.
    The cache has `context` positions, by default the model's context but at most USUAL_CONTEXT;
    `kv` is the storage type of keys and values (see `Context`). Raises ConfigError for a template
    that is not valid, and for a `system` without a template.
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
        """The turns that are remembered; the newest has its answer so far."""
        return self._past + ([] if self._newest is None else [self._newest.exchange])

    @property
    def system(self) -> str:
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        """Used from the next turn on. Raises ConfigError where the model has no chat template."""
        self._format = chat_format_for(self._tokenizer, text)
        self._system = text

    def say(self, said: str) -> Turn:
        """The next turn. The answer before it must have ended.

        The oldest turns are forgotten until the answer has room for `max_tokens`, or for half the
        context where that is less. Raises ConfigError for a question longer than the context.
        """
        capacity = self._writer.context
        room = capacity - min(self._max_tokens, capacity // 2)
        past = self.turns
        forgotten = 0
        prompt = self._format.prompt(past, said)
        while len(prompt) > room and forgotten < len(past):
            forgotten += 1
            prompt = self._format.prompt(past[forgotten:], said)
        chat_format = self._format
        answer = self._writer.write(
            prompt,
            self._max_tokens,
            StopText(chat_format.stops, opening=True),
            chat_format.ends,
            continues=chat_format.continues,
        )
        self._past, self._newest = past[forgotten:], Turn(said, answer, forgotten)
        return self._newest

    def again(self) -> Turn:
        """Answer the last question anew. Raises ConfigError where there is no question."""
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
        """Forget all turns."""
        self.restore([])
