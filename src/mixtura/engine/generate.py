"""Generation, streamed: one token at a time, text as soon as it is complete.

V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Self

import torch
from torch import Tensor

from mixtura.engine.answer_text import AnswerText
from mixtura.engine.choosing import Chooser, choose
from mixtura.engine.context import Context
from mixtura.engine.kv_cache import KVKind
from mixtura.engine.logprobs import Logprobs, check_count, logprobs_of
from mixtura.engine.sampling import Sampling
from mixtura.engine.stopping import StopText
from mixtura.errors import ConfigError
from mixtura.models import LanguageModel
from mixtura.tokenizers import Tokenizer

FinishReason = Literal["end", "stop", "max_tokens", "length", "interrupted"]
"""The model ended its document or its turn; the stop text came; as many tokens as asked for; the
context is full; the listener left."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated, and how fast."""

    text: str
    tokens: tuple[int, ...]
    """without the one that ended it"""
    prompt_tokens: int
    finish: FinishReason
    prefill_seconds: float
    """until the first token's logits were there: the time to first token, loading aside"""
    decode_seconds: float
    """for everything after; the listener's own time is not counted"""
    logprobs: tuple[Logprobs, ...] | None = None
    """of each of `tokens`, where they were asked for"""

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, which the prefill paid for, over `decode_seconds`."""
        later = len(self.tokens) - 1
        return later / self.decode_seconds if later > 0 else 0.0


def generate(
    decoder: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    max_tokens: int,
    context: int | None = None,
    kv: KVKind | None = None,
    *,
    stops: Sequence[str] = (),
    logprobs: int | None = None,
) -> "Stream":
    """Continue `prompt`; iterate over what comes back for the text, then see its `result`.

    An empty prompt begins a new document. The cache has `context` positions, by default as many as
    the prompt and `max_tokens` need, and stores them as `kv` says (see `Context`). One of `stops`
    ends the answer and is no part of it; `logprobs` are the likeliest tokens to tell of at each
    place. Raises ConfigError for a model that is no decoder, and where the prompt exceeds the
    context; the answer ends, with finish "length", where it has filled the context.
    """
    tokens = prompt_tokens(tokenizer, prompt)
    needed = min(len(tokens) + max(max_tokens, 1), decoder.config.context)
    writer = Writer(decoder, tokenizer, sampling, needed if context is None else context, kv)
    return writer.write(tokens, max_tokens, StopText(stops), logprobs=logprobs)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """At least one: an empty prompt begins a new document."""
    return [*tokenizer.begin, *tokenizer.encode(prompt)] or [tokenizer.end_of_document]


class Writer:
    """A decoder that continues texts one after another, reading what they share only once."""

    def __init__(
        self,
        decoder: LanguageModel,
        tokenizer: Tokenizer,
        sampling: Sampling,
        context: int | None = None,
        kv: KVKind | None = None,
    ) -> None:
        sampling.check_vocabulary(decoder.config.vocabulary)
        self.context = Context(decoder, capacity=context, kv=kv)
        self.tokenizer, self.sampling = tokenizer, sampling
        # On the CPU, so that a seed means the same text on every device.
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def write(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        stop: StopText | None = None,
        ends: frozenset[int] | None = None,
        continues: bool = True,
        logprobs: int | None = None,
    ) -> "Stream":
        """Continue the tokens until `stop` or one of `ends` appears, neither part of the answer.

        Without `ends` the tokenizer's own end it. An answer that `continues` the prompt's text
        keeps a space that it begins with; one that does not is a text of its own. The stream reads
        through this writer's context: end it before the next one begins.
        """
        check_count(logprobs)
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} must be 1 or more; ask for some text")
        self.context.check("the prompt", len(prompt))
        ends = self.tokenizer.ends if ends is None else ends
        text = AnswerText(
            self.tokenizer.stream(after=prompt if continues else ()), stop or StopText()
        )
        return Stream(self, prompt, max_tokens, text, ends, logprobs)


class Stream:
    """Iterate for pieces of text; `result` says how it went once the iteration has ended.

    It ends with the answer, by an exception such as KeyboardInterrupt, or when the caller leaves.
    """

    def __init__(
        self,
        writer: Writer,
        prompt: Sequence[int],
        max_tokens: int,
        text: AnswerText,
        ends: frozenset[int],
        logprobs: int | None,
    ) -> None:
        self._writer, self._prompt, self._max_tokens = writer, prompt, max_tokens
        self._decoded, self._ends, self._num_logprobs = text, ends, logprobs
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[Logprobs] = []
        self._chooser = Chooser(writer.sampling, prompt, self._tokens, writer.generator)
        self._finish: FinishReason = "interrupted"
        self._prefill_seconds = self._decode_seconds = 0.0
        self._pieces = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        self._text.append(piece)
        return piece

    @property
    def result(self) -> Generation:
        return Generation(
            "".join(self._text),
            tuple(self._tokens),
            len(self._prompt),
            self._finish,
            self._prefill_seconds,
            self._decode_seconds,
            None if self._num_logprobs is None else tuple(self._logprobs),
        )

    def _run(self) -> Iterator[str]:
        began = perf_counter()
        logits_V = self._writer.context.become(self._prompt)
        self._prefill_seconds = perf_counter() - began
        text = self._decoded
        for token in self._draw(logits_V):
            if piece := text.push(token):
                yield piece
            if text.stopped:
                self._finish = "stop"
                return
        if piece := text.finish():
            yield piece

    def _draw(self, logits_V: Tensor) -> Iterator[int]:
        context = self._writer.context
        while True:
            began = perf_counter()
            if self._tokens:
                logits_V = context.read(self._tokens[-1:])
            known = self._writer.tokenizer.vocabulary
            (token,) = choose(logits_V[None], [self._chooser], known)
            self._decode_seconds += perf_counter() - began
            if token in self._ends:
                self._finish = "end"
                return
            if self._num_logprobs is not None:
                self._logprobs.append(logprobs_of(logits_V, token, self._num_logprobs))
            self._tokens.append(token)
            yield token
            if len(self._tokens) == self._max_tokens:
                self._finish = "max_tokens"
                return
            if context.room == 0:
                self._finish = "length"
                return
