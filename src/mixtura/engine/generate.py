"""Generation, streamed: one token at a time, text as soon as it is complete."""

from collections import abc
from collections.abc import Iterator
from typing import Self

import torch

from mixtura.engine.context import shared_length
from mixtura.engine.kv_cache import KVKind
from mixtura.engine.readers import reader_for
from mixtura.engine.sampling import Sampling
from mixtura.engine.scheduler import Scheduler
from mixtura.engine.sequence import AnswerText, Generation, Sequence
from mixtura.engine.stopping import StopText
from mixtura.models import LanguageModel
from mixtura.tokenizers import Tokenizer


def generate(
    decoder: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    max_tokens: int,
    context: int | None = None,
    kv: KVKind | None = None,
    *,
    stops: abc.Sequence[str] = (),
    logprobs: int | None = None,
) -> "Stream":
    """Continue `prompt`: iterate over the stream for the text, then see its `result`.

    An empty prompt begins a new document. The cache has `context` positions, by default as many as
    the prompt and `max_tokens` need, and stores them as `kv` says (see `Context`). One of `stops`
    ends the answer and is no part of it; `logprobs` is how many of the likeliest tokens are
    listed at each place. Raises ConfigError for a model that is no decoder, and where the prompt
    exceeds the context; the answer ends, with finish "length", where it has filled the context.
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
        reader = reader_for(decoder, context, kv)
        self.context = reader.context
        """positions that a text may have"""
        self.tokenizer, self.sampling = tokenizer, sampling
        # On the CPU, so that a seed means the same text on every device.
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self._scheduler = Scheduler(reader, tokenizer.vocabulary)
        self._last: Sequence | None = None

    def write(
        self,
        prompt: abc.Sequence[int],
        max_tokens: int,
        stop: StopText | None = None,
        ends: frozenset[int] | None = None,
        continues: bool = True,
        logprobs: int | None = None,
    ) -> "Stream":
        """Continue the tokens until `stop` or one of `ends` appears, neither part of the answer.

        `ends` are by default the tokenizer's own. An answer that `continues` the prompt's text
        keeps a space that it begins with; one that does not is a text of its own. An answer before
        it that has not ended is interrupted.
        """
        decoded = self.tokenizer.stream(after=prompt if continues else ())
        text = AnswerText(decoded, stop or StopText())
        ends = self.tokenizer.ends if ends is None else ends
        one = Sequence.of(prompt, self.sampling, max_tokens, ends, logprobs, text, self.generator)
        self._scheduler.check(one)
        if self._last is not None:
            self._scheduler.leave(self._last)
            shared = shared_length(self._last.held, prompt)
            # The last token is always read, for its logits.
            one.prompt_read = min(shared, len(prompt) - 1)
        self._scheduler.begin(one)
        self._last = one
        return Stream(self._scheduler, one)


class Stream:
    """Iterate for pieces of text; `result` says how it went once the iteration has ended.

    It ends with the answer, by an exception such as KeyboardInterrupt, or when the caller leaves.
    """

    def __init__(self, scheduler: Scheduler, one: Sequence) -> None:
        self._one = one
        self._pieces = _pieces(scheduler, one)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> Generation:
        return self._one.result


def _pieces(scheduler: Scheduler, one: Sequence) -> Iterator[str]:
    shown = 0
    while one.finish is None:
        scheduler.advance()
        while shown < len(one.pieces):
            shown += 1
            yield one.pieces[shown - 1]
