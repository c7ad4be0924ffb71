"""One sequence: its prompt, its sampling, what ends it, its text and its times.

V vocabulary.
"""

from collections import abc
from dataclasses import dataclass, field
from typing import Literal, Self

from torch import Generator, Tensor

from mixtura.engine.logprobs import Logprobs, check_count, logprobs_of
from mixtura.engine.next_token import TokenSampler
from mixtura.engine.runner import CHUNK, SlotTokens
from mixtura.engine.sampling import Sampling
from mixtura.engine.stop_text import StopText
from mixtura.errors import ConfigError
from mixtura.tokenizers import TextStream

FinishReason = Literal["end", "stop", "max_tokens", "length", "interrupted"]
"""`end`: the model ended its document or its turn. `stop`: a stop text appeared. `max_tokens`: the
answer has that many tokens. `length`: the context is full. `interrupted`: the caller ended it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer, and the times that it took."""

    text: str
    tokens: tuple[int, ...]
    """without the token that ended the answer"""
    prompt_tokens: int
    finish: FinishReason
    prefill_seconds: float
    """until the logits of the first token: the time to first token, without loading the model"""
    decode_seconds: float
    """from there to the last token, without the time that the caller takes between steps"""
    logprobs: tuple[Logprobs, ...] | None = None
    """of each of `tokens`, if they were requested"""

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first over `decode_seconds`; the first one belongs to the prefill."""
        later = len(self.tokens) - 1
        return later / self.decode_seconds if later > 0 else 0.0


class AnswerText:
    """Converts an answer's tokens into text; `stopped` is True once a stop text has appeared."""

    def __init__(self, text: TextStream, stop: StopText) -> None:
        self._text, self._stop = text, stop

    @property
    def stopped(self) -> bool:
        return self._stop.met

    def push(self, token: int) -> str:
        """The next text that is certain to belong to the answer; it may be empty."""
        return self._stop.push(self._text.push(token))

    def finish(self) -> str:
        """The text that was held back; for use after the last token."""
        return self._stop.push(self._text.finish()) + self._stop.rest()


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and its answer so far; a `Scheduler` adds the tokens of the answer.

    Each sequence has its own random generator, so other sequences do not change its tokens.
    """

    prompt: tuple[int, ...]
    sampler: TokenSampler
    max_tokens: int
    ends: frozenset[int]
    tokens: list[int]
    """the answer so far, without the token that ends it"""
    num_logprobs: int | None = None
    """how many of the likeliest tokens are listed for each token; None: no log probabilities"""
    text: AnswerText | None = None
    """None where only the tokens are needed"""
    prompt_read: int = 0
    """how many tokens of the prompt the slot has; its last chunk is not counted"""
    slot: int = -1
    """-1 until the scheduler gives it one"""
    finish: FinishReason | None = None
    """why it ended; None while it runs"""
    logprobs: list[Logprobs] = field(default_factory=list)
    """of each of `tokens`, if they were requested"""
    pieces: list[str] = field(default_factory=list)
    """the answer's text so far"""
    began: float = 0.0
    """in seconds of the scheduler's clock, which counts the time in steps alone"""
    first: float = 0.0
    """when the logits of the first token were computed, by the same clock"""
    last: float = 0.0
    """when the newest token was added, by the same clock"""

    @classmethod
    def of(
        cls,
        prompt: abc.Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        ends: frozenset[int] = frozenset(),
        logprobs: int | None = None,
        text: AnswerText | None = None,
        generator: Generator | None = None,
    ) -> Self:
        """A sequence that continues `prompt` until a token of `ends`, a stop text or `max_tokens`.

        Without a `generator` the seed of `sampling` makes one. Raises ConfigError for an empty
        prompt, and for `max_tokens` or `logprobs` out of bounds.
        """
        check_count(logprobs)
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} must be 1 or more; ask for some text")
        if not prompt:
            raise ConfigError("a prompt of no tokens; begin with the end-of-document token")
        answer: list[int] = []
        sampler = TokenSampler(sampling, prompt, answer, generator)
        return cls(tuple(prompt), sampler, max_tokens, ends, answer, logprobs, text)

    @property
    def read(self) -> int:
        """How many of its tokens its slot has; the newest token of an answer is not read yet."""
        # One list decides, so that an interruption cannot leave two counts that disagree.
        return len(self.prompt) + len(self.tokens) - 1 if self.tokens else self.prompt_read

    @property
    def held(self) -> list[int]:
        """The tokens whose keys and values its slot has."""
        return [*self.prompt, *self.tokens][: self.read]

    def next_part(self) -> SlotTokens:
        """The tokens that its next step reads: a chunk of the prompt, or the newest token."""
        if self.tokens:
            read = len(self.prompt) + len(self.tokens) - 1
            return SlotTokens(self.slot, read, self.tokens[-1:], with_logits=True)
        # A chunk begins where the last one ended, so other sequences do not change the chunks.
        start, end = self.prompt_read, self.prompt_read + CHUNK
        return SlotTokens(self.slot, start, self.prompt[start:end], end >= len(self.prompt))

    def take(self, token: int, logits_V: Tensor, context: int) -> None:
        """Add the token that was sampled from `logits_V`; this may end the sequence.

        `context` is the number of positions of its slot.
        """
        if token in self.ends:
            self.finish = "end"
        else:
            if self.num_logprobs is not None:
                # An interrupted step may have added log probabilities without their token.
                del self.logprobs[len(self.tokens) :]
                self.logprobs.append(logprobs_of(logits_V, token, self.num_logprobs))
            self.tokens.append(token)
            if len(self.tokens) == self.max_tokens:
                self.finish = "max_tokens"
            elif len(self.prompt) + len(self.tokens) - 1 == context:
                self.finish = "length"
        if self.text is not None:
            self._write(self.text, token)

    def _write(self, text: AnswerText, token: int) -> None:
        if self.finish != "end" and (piece := text.push(token)):
            self.pieces.append(piece)
        if self.finish is not None and not text.stopped and (piece := text.finish()):
            self.pieces.append(piece)
        if text.stopped:
            self.finish = "stop"

    @property
    def result(self) -> Generation:
        """The answer so far; its finish is "interrupted" while the sequence runs."""
        return Generation(
            "".join(self.pieces),
            tuple(self.tokens),
            len(self.prompt),
            self.finish or "interrupted",
            self.first - self.began,
            self.last - self.first,
            None if self.num_logprobs is None else tuple(self.logprobs),
        )
