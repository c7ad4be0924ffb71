"""Answers to many prompts, each with its own options.

As many prompts are answered at a time as the cache has slots.
"""

from collections import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from mixtura.engine.cache_plan import KVKind, check_length, own_kv
from mixtura.engine.generate import prompt_tokens
from mixtura.engine.logprobs import check_count
from mixtura.engine.readers import Reader, reader_for
from mixtura.engine.runner import Runner, as_decoder, why_alone
from mixtura.engine.sampling import Sampling
from mixtura.engine.scheduler import Scheduler
from mixtura.engine.sequence import AnswerText, Generation, Sequence
from mixtura.engine.stop_text import StopText
from mixtura.errors import ConfigError
from mixtura.models import LanguageModel
from mixtura.tokenizers import Tokenizer

TokenProgress = Callable[[int, int], None]
"""Called with the number of tokens so far, and the most that all answers may have.

An answer that ended early counts as `max_tokens`.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and the options of its answer."""

    prompt: str
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    name: str = "the prompt"
    """the name of the request in an error message"""

    def as_data(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**own, "sampling": self.sampling.model_dump()}


class Answered(NamedTuple):
    number: int
    """the number of the request, from 0 on"""
    result: Generation


class ManyPrompts:
    """Checks requests when it is built; `run` answers them.

    Up to `together` requests are answered at a time. Where the decoder cannot run in a batch they
    are answered one after another, and `why_in_turn` has the reason. Each answer has a random
    generator of its own. Each sequence has `context` positions in the cache, by default as many as
    the longest request needs. Raises ConfigError, with the name of the request, for a request that
    cannot be answered.
    """

    def __init__(
        self,
        decoder: LanguageModel,
        tokenizer: Tokenizer,
        requests: abc.Sequence[Request],
        together: int,
        context: int | None = None,
        kv: KVKind | None = None,
    ) -> None:
        if together < 1:
            raise ConfigError(f"together={together} must be 1 or more; answer one at a time")
        self._decoder, self._tokenizer, self._requests = as_decoder(decoder), tokenizer, requests
        self._kv: KVKind | None = kv
        self._together = max(1, min(together, len(requests)))
        self._prompts = [prompt_tokens(tokenizer, one.prompt) for one in requests]
        needed = [
            len(prompt) + one.max_tokens
            for prompt, one in zip(self._prompts, requests, strict=True)
        ]
        longest = self._decoder.config.context
        self._context = min(max(needed, default=1), longest) if context is None else context
        for prompt, one in zip(self._prompts, requests, strict=True):
            self._check(prompt, one)
        self.why_in_turn = why_alone(self._decoder)

    def run(self, progress: TokenProgress | None = None) -> Iterator[Answered]:
        """Each answer when it ends."""
        done = _Done(self._requests, progress)
        scheduler = Scheduler(self._reader(), self._tokenizer.vocabulary)
        waiting = list(enumerate(zip(self._requests, self._prompts, strict=True)))[::-1]
        numbers: dict[Sequence, int] = {}
        while waiting or numbers:
            while waiting and len(numbers) < scheduler.reader.slots:
                number, (request, prompt) = waiting.pop()
                one = self._sequence(request, prompt)
                scheduler.begin(one)
                numbers[one] = number
            for one in scheduler.advance():
                if one.finish is not None:
                    number = numbers.pop(one)
                    done.ended(number)
                    yield Answered(number, one.result)
            done.moved([len(one.tokens) for one in numbers])

    def _reader(self) -> Reader:
        if self.why_in_turn is not None:
            return reader_for(self._decoder, self._context, self._kv)
        kv = self._kv or own_kv(self._decoder)
        return Runner.of(self._decoder, self._together, self._context, kv)

    def _check(self, prompt: abc.Sequence[int], one: Request) -> None:
        shape = self._decoder.config
        try:
            check_length("the prompt", len(prompt), self._context, shape)
            one.sampling.check_vocabulary(shape.vocabulary)
            check_count(one.logprobs)
        except ConfigError as error:
            raise ConfigError(f"{one.name}: {error}") from error

    def _sequence(self, one: Request, prompt: abc.Sequence[int]) -> Sequence:
        text = AnswerText(self._tokenizer.stream(after=prompt), StopText(one.stops))
        return Sequence.of(
            prompt, one.sampling, one.max_tokens, self._tokenizer.ends, one.logprobs, text
        )


class _Done:
    """Counts the tokens of all answers, for progress."""

    def __init__(self, requests: abc.Sequence[Request], progress: TokenProgress | None) -> None:
        self._most = [one.max_tokens for one in requests]
        self._progress, self._done = progress, 0

    def ended(self, number: int) -> None:
        self._done += self._most[number]
        self.moved([])

    def moved(self, on_their_way: abc.Sequence[int]) -> None:
        """Report progress. `on_their_way` has the number of tokens of each answer that runs."""
        if self._progress is not None:
            self._progress(self._done + sum(on_their_way), sum(self._most))
