"""Answers to many prompts: as many at a time as the cache has slots, each by its own options."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Any, NamedTuple

from mixtura.engine.answer_text import AnswerText
from mixtura.engine.batch import Batch, Running
from mixtura.engine.generate import FinishReason, Generation, generate, prompt_tokens
from mixtura.engine.kv_cache import KVKind, check_length, own_kv
from mixtura.engine.logprobs import check_count
from mixtura.engine.runner import Runner, as_decoder, why_alone
from mixtura.engine.sampling import Sampling
from mixtura.engine.stopping import StopText
from mixtura.errors import ConfigError
from mixtura.models import LanguageModel
from mixtura.tokenizers import Tokenizer

Progress = Callable[[int, int], None]
"""Called with tokens done and in all, answers that ended early counted as whole."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how it is to be answered."""

    prompt: str
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    name: str = "the prompt"
    """what an error calls it"""

    def as_data(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**own, "sampling": self.sampling.model_dump()}


class Answered(NamedTuple):
    number: int
    """of the request, from 0 on"""
    result: Generation


class Many:
    """Requests that were checked, and are answered by `run`.

    Through a batch where the engine has one for this decoder, else in turn: `why_in_turn` says why.
    Each draws as it would alone. The cache has `context` positions for each of `together`
    sequences, by default as many as the longest request needs. Raises ConfigError for a request
    that cannot be answered, by its name.
    """

    def __init__(
        self,
        decoder: LanguageModel,
        tokenizer: Tokenizer,
        requests: Sequence[Request],
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

    def run(self, progress: Progress | None = None) -> Iterator[Answered]:
        """Each answer as it ends."""
        told = _Told(self._requests, progress)
        if self.why_in_turn is not None:
            yield from self._in_turn(told)
        else:
            yield from self._together_in_a_batch(told)

    def _check(self, prompt: Sequence[int], one: Request) -> None:
        shape = self._decoder.config
        try:
            check_length("the prompt", len(prompt), self._context, shape)
            one.sampling.check_vocabulary(shape.vocabulary)
            check_count(one.logprobs)
        except ConfigError as error:
            raise ConfigError(f"{one.name}: {error}") from error

    def _in_turn(self, told: "_Told") -> Iterator[Answered]:
        for number, one in enumerate(self._requests):
            stream = generate(
                self._decoder,
                self._tokenizer,
                one.prompt,
                one.sampling,
                one.max_tokens,
                self._context,
                self._kv,
                stops=one.stops,
                logprobs=one.logprobs,
            )
            for _ in stream:
                told.moved([len(stream.result.tokens)])
            told.ended(number)
            yield Answered(number, stream.result)

    def _together_in_a_batch(self, told: "_Told") -> Iterator[Answered]:
        batch = Batch(
            Runner.of(
                self._decoder, self._together, self._context, self._kv or own_kv(self._decoder)
            ),
            self._tokenizer.vocabulary,
        )
        waiting = list(enumerate(zip(self._requests, self._prompts, strict=True)))[::-1]
        answers: dict[int, _Answer] = {}
        while waiting or answers:
            while waiting and len(answers) < self._together:
                number, (one, prompt) = waiting.pop()
                running = batch.add(
                    prompt, one.sampling, one.max_tokens, self._tokenizer.ends, one.logprobs
                )
                text = AnswerText(self._tokenizer.stream(after=prompt), StopText(one.stops))
                answers[running.slot] = _Answer(number, running, text, one.logprobs is not None)
            for running in batch.advance():
                answer = answers[running.slot]
                if answer.moved(batch):
                    del answers[running.slot]
                    told.ended(answer.number)
                    yield Answered(answer.number, answer.result)
            told.moved([len(answer.running.tokens) for answer in answers.values()])


class _Answer:
    """One of the batch, its text, and when its tokens came."""

    def __init__(
        self, number: int, running: Running, text: AnswerText, keeps_logprobs: bool
    ) -> None:
        self.number, self.running = number, running
        self._text, self._keeps_logprobs = text, keeps_logprobs
        self._written = ""
        self._pushed = 0
        self._began = perf_counter()
        self._prefill_seconds = self._seconds = 0.0

    def moved(self, batch: Batch) -> bool:
        """Take what its last step gave; whether the answer is over."""
        self._seconds = perf_counter() - self._began
        self._prefill_seconds = self._prefill_seconds or self._seconds
        for token in self.running.tokens[self._pushed :]:
            self._pushed += 1
            self._written += self._text.push(token)
        if self._text.stopped:
            batch.leave(self.running)
        elif self.running.finish is not None:
            self._written += self._text.finish()
        return self.running.finish is not None

    @property
    def result(self) -> Generation:
        running = self.running
        assert running.finish is not None, "it is over"
        finish: FinishReason = "stop" if self._text.stopped else running.finish
        return Generation(
            self._written,
            tuple(running.tokens),
            len(running.prompt),
            finish,
            self._prefill_seconds,
            self._seconds - self._prefill_seconds,
            tuple(running.logprobs) if self._keeps_logprobs else None,
        )


class _Told:
    """How far all are."""

    def __init__(self, requests: Sequence[Request], progress: Progress | None) -> None:
        self._most = [one.max_tokens for one in requests]
        self._progress, self._done = progress, 0

    def ended(self, number: int) -> None:
        self._done += self._most[number]
        self.moved([])

    def moved(self, on_their_way: Sequence[int]) -> None:
        """`on_their_way`: tokens of each answer that has not ended."""
        if self._progress is not None:
            self._progress(self._done + sum(on_their_way), sum(self._most))
