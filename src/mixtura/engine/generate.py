"""Generation of one text at a time, as a stream of pieces of text."""

from collections import abc
from collections.abc import Iterator
from typing import Self

import torch

from mixtura.engine.cache_plan import KVKind
from mixtura.engine.context import shared_length
from mixtura.engine.readers import reader_for
from mixtura.engine.sampling import Sampling
from mixtura.engine.scheduler import Scheduler
from mixtura.engine.sequence import AnswerText, Generation, Sequence
from mixtura.engine.stop_text import StopText
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
    """Continue `prompt`: iterate over the stream for the text, then read its `result`.

    An empty prompt begins a new document. The cache has `context` positions, by default as many as
    the prompt and `max_tokens` need; `kv` is the storage type of keys and values (see `Context`).
    A text of `stops` ends the answer and is left out of it. `logprobs` is how many of the likeliest
    tokens are listed for each token of the answer. An answer that fills the context ends with the
    finish "length". Raises ConfigError for a model that is no decoder, and for a prompt longer than
    the context.
    """
    tokens = prompt_tokens(tokenizer, prompt)
    needed = min(len(tokens) + max(max_tokens, 1), decoder.config.context)
    writer = Writer(decoder, tokenizer, sampling, needed if context is None else context, kv)
    return writer.write(tokens, max_tokens, StopText(stops), logprobs=logprobs)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's tokens, at least one. An empty prompt begins a new document."""
    return [*tokenizer.begin, *tokenizer.encode(prompt)] or [tokenizer.end_of_document]


class Writer:
    """Continues texts one after another.

    A beginning that a text shares with the text before it is not read again.
    """

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
        """the most positions of a text"""
        self.tokenizer, self.sampling = tokenizer, sampling
        # A generator on the CPU gives the same numbers for a seed on every device.
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
        """Continue the tokens of `prompt` until a token of `ends` or a text of `stop` appears.

        The answer contains neither. `ends` are by default the tokenizer's own. With `continues` the
        answer goes on with the prompt's text, so that a space at its beginning is kept; without it
        the answer is a text of its own. An earlier answer that has not ended is interrupted.
        """
        decoded = self.tokenizer.stream(after=prompt if continues else ())
        text = AnswerText(decoded, stop or StopText())
        ends = self.tokenizer.ends if ends is None else ends
        one = Sequence.of(prompt, self.sampling, max_tokens, ends, logprobs, text, self.generator)
        self._scheduler.check(one)
        if self._last is not None:
            self._scheduler.leave(self._last)
            shared = shared_length(self._last.held, prompt)
            # The last token is always read, because its logits are needed.
            one.prompt_read = min(shared, len(prompt) - 1)
        self._scheduler.begin(one)
        self._last = one
        return Stream(self._scheduler, one)


class Stream:
    """Iterate for pieces of an answer's text; `result` has the answer so far.

    The iteration ends with the answer. If an exception such as KeyboardInterrupt or the caller ends
    it earlier, the result's finish is "interrupted".
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
