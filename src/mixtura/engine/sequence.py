"""One sequence: a prompt, the way its answer is drawn, what ends it, its text and its times.

V vocabulary.
"""

from collections import abc
from dataclasses import dataclass, field
from typing import Literal, Self

from torch import Generator, Tensor

from mixtura.engine.choosing import Chooser
from mixtura.engine.logprobs import Logprobs, check_count, logprobs_of
from mixtura.engine.runner import CHUNK, Part
from mixtura.engine.sampling import Sampling
from mixtura.engine.stopping import StopText
from mixtura.errors import ConfigError
from mixtura.tokenizers import TextStream

FinishReason = Literal["end", "stop", "max_tokens", "length", "interrupted"]
"""The model ended its document or its turn; the stop text came; as many tokens as asked for; the
context is full; the caller left."""


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
    """for everything after; the caller's own time is not counted"""
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


class AnswerText:
    """An answer's text, from its tokens as they come; `stopped` once a stop text came."""

    def __init__(self, text: TextStream, stop: StopText) -> None:
        self._text, self._stop = text, stop

    @property
    def stopped(self) -> bool:
        return self._stop.met

    def push(self, token: int) -> str:
        """What is now sure to be part of the answer."""
        return self._stop.push(self._text.push(token))

    def finish(self) -> str:
        """What was held back, once it is known that nothing more comes."""
        return self._stop.push(self._text.finish()) + self._stop.rest()


@dataclass(eq=False, slots=True)
class Sequence:
    """Its own generator draws, so that neighbours change nothing. A `Scheduler` moves it on."""

    prompt: tuple[int, ...]
    chooser: Chooser
    max_tokens: int
    ends: frozenset[int]
    tokens: list[int]
    """the answer so far, without the token that ended it"""
    num_logprobs: int | None = None
    """how many of the likeliest tokens are listed at each place; None: no log-probabilities"""
    text: AnswerText | None = None
    """None where tokens alone are wanted"""
    prompt_read: int = 0
    """tokens of the prompt that the slot held already, or that were read before its last chunk"""
    slot: int = -1
    finish: FinishReason | None = None
    """why it ended; None while it runs"""
    logprobs: list[Logprobs] = field(default_factory=list)
    """of each of `tokens`, where they were asked for"""
    pieces: list[str] = field(default_factory=list)
    """its text so far"""
    began: float = 0.0
    """by the scheduler's clock; so are `first`, when the first logits were there, and `last`"""
    first: float = 0.0
    last: float = 0.0

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
        """Goes on from `prompt` until one of `ends`, a stop text or `max_tokens`.

        Without a `generator` the sampling's seed makes one. Raises ConfigError.
        """
        check_count(logprobs)
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} must be 1 or more; ask for some text")
        if not prompt:
            raise ConfigError("a prompt of no tokens; begin with the end-of-document token")
        answer: list[int] = []
        chooser = Chooser(sampling, prompt, answer, generator)
        return cls(tuple(prompt), chooser, max_tokens, ends, answer, logprobs, text)

    @property
    def read(self) -> int:
        """How many positions its slot holds of it."""
        # Computed from one list, so that an interruption leaves no two counts that disagree.
        return len(self.prompt) + len(self.tokens) - 1 if self.tokens else self.prompt_read

    @property
    def held(self) -> list[int]:
        """The tokens that its slot holds of it."""
        return [*self.prompt, *self.tokens][: self.read]

    def next_part(self) -> Part:
        """What its next step reads: a chunk of the prompt, or the newest token."""
        if self.tokens:
            read = len(self.prompt) + len(self.tokens) - 1
            return Part(self.slot, read, self.tokens[-1:], asked=True)
        # Chunks count from where the reading begins, whatever else a step reads.
        start, end = self.prompt_read, self.prompt_read + CHUNK
        return Part(self.slot, start, self.prompt[start:end], end >= len(self.prompt))

    def take(self, token: int, logits_V: Tensor, context: int) -> None:
        """The next token, drawn from these logits, which may end it; `context`: its slot's room."""
        if token in self.ends:
            self.finish = "end"
        else:
            if self.num_logprobs is not None:
                # As long as the tokens, should an earlier step have been interrupted in between.
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
        """How it went; interrupted, as far as it came."""
        return Generation(
            "".join(self.pieces),
            tuple(self.tokens),
            len(self.prompt),
            self.finish or "interrupted",
            self.first - self.began,
            self.last - self.first,
            None if self.num_logprobs is None else tuple(self.logprobs),
        )
