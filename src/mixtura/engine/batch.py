"""Many sequences at once, which come and go while others go on.

R rows of a step, N sequences that a step gives a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.engine.choosing import Chooser, choose
from mixtura.engine.generate import FinishReason
from mixtura.engine.kv_cache import check_length
from mixtura.engine.logprobs import Logprobs, check_count, logprobs_of
from mixtura.engine.runner import CHUNK, Runner
from mixtura.engine.sampling import Sampling
from mixtura.errors import ConfigError
from mixtura.kernels.phase import Phase


@dataclass(eq=False, slots=True)
class Running:
    """One sequence of a batch; its own generator draws, so that neighbours change nothing."""

    prompt: tuple[int, ...]
    chooser: Chooser
    max_tokens: int
    ends: frozenset[int]
    slot: int
    tokens: list[int] = field(default_factory=list)
    """the answer so far, without the token that ended it"""
    finish: FinishReason | None = None
    """why it ended; None while it runs"""
    num_logprobs: int | None = None
    """how many of the likeliest tokens to tell of at each place; None: nothing"""
    logprobs: list[Logprobs] = field(default_factory=list)
    """of each of `tokens`, where they were asked for"""
    chunks_read: int = 0
    """tokens of the prompt that were read before its last chunk"""

    @property
    def read(self) -> int:
        """How many positions the cache holds of it."""
        # One list says it all, so that an interruption finds nothing half told.
        return len(self.prompt) + len(self.tokens) - 1 if self.tokens else self.chunks_read

    @property
    def unread(self) -> Sequence[int]:
        """What its next step reads: a chunk of the prompt, or the newest token."""
        # Chunks count from the sequence's own beginning, whatever else a step reads.
        return self.tokens[-1:] or self.prompt[self.chunks_read : self.chunks_read + CHUNK]

    @property
    def answers(self) -> bool:
        """Whether its next step ends with a token of the answer."""
        return self.read + len(self.unread) >= len(self.prompt)


class _Part(NamedTuple):
    """What a step reads of one sequence."""

    of: Running
    tokens: Sequence[int]


class Batch:
    """Sequences over one runner: `add` them, and `advance` all until each has its `finish`.

    Answers are of tokens below `known`, such as the tokenizer's vocabulary; by default of all.
    """

    def __init__(self, runner: Runner, known: int | None = None) -> None:
        self.runner, self._known = runner, known
        self.running: list[Running] = []
        self._free = list(reversed(range(runner.plan.slots)))
        self._read_last = False

    def add(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        ends: frozenset[int] = frozenset(),
        logprobs: int | None = None,
    ) -> Running:
        """A sequence that goes on from `prompt` until one of `ends`, or `max_tokens`.

        Raises ConfigError for more sequences than the cache was sized for, a prompt that is empty
        or longer than the context, and tokens that the model does not know.
        """
        plan = self.runner.plan
        check_count(logprobs)
        sampling.check_vocabulary(self.runner.decoder.config.vocabulary)
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} must be 1 or more; ask for some text")
        if not prompt:
            raise ConfigError("a prompt of no tokens; begin with the end-of-document token")
        check_length("the prompt", len(prompt), plan.context, plan.shape)
        self.runner.check_tokens(torch.tensor(prompt))
        if not self._free:
            raise ConfigError(
                f"{len(self.running) + 1} sequences exceed the {plan.slots} slots that the cache "
                "was sized for; let one end first, or ask for more slots"
            )
        slot = self._free.pop()
        self.runner.expect(slot, len(prompt))
        answer: list[int] = []
        chooser = Chooser(sampling, prompt, answer)
        one = Running(tuple(prompt), chooser, max_tokens, ends, slot, answer, num_logprobs=logprobs)
        self.running.append(one)
        return one

    def leave(self, one: Running) -> None:
        """End a sequence early; its finish is "interrupted"."""
        if one.finish is None:
            self._end(one, "interrupted")

    def advance(self) -> list[Running]:
        """One step; gives the sequences that received a token or ended by it.

        It reads prompts, up to CHUNK tokens of them, or gives each running answer its next token,
        in turn where there are both. After an interruption the same step can be taken again.
        """
        prompts = [one for one in self.running if not one.tokens]
        answers = [one for one in self.running if one.tokens]
        reads = bool(prompts) and not (answers and self._read_last)
        if not prompts and not answers:
            return []
        parts = _parts(prompts, CHUNK) if reads else _parts(answers, len(answers))
        moved = self._step(parts, "prefill" if reads else "decode")
        self._read_last = reads
        return moved

    def _step(self, parts: Sequence[_Part], phase: Phase) -> list[Running]:
        # Lists, each made a tensor once: an operation of torch on a few numbers takes 20 us between
        # two steps that have swept the processor's caches.
        tokens_R: list[int] = []
        slots_R: list[int] = []
        positions_R: list[int] = []
        asked_N: list[int] = []
        for of, tokens in parts:
            slots_R += [of.slot] * len(tokens)
            positions_R += range(of.read, of.read + len(tokens))
            tokens_R += tokens
            if of.answers:
                asked_N.append(len(tokens_R) - 1)
        logits_NV = self.runner.step(
            torch.tensor(tokens_R),
            torch.tensor(slots_R),
            torch.tensor(positions_R),
            phase,
            torch.tensor(asked_N, dtype=torch.int64),
        )
        moved = [part.of for part in parts if part.of.answers]
        choosers = [one.chooser for one in moved]
        tokens = choose(logits_NV, choosers, self._known) if moved else []
        for part in parts:
            if not part.of.answers:
                part.of.chunks_read += len(part.tokens)
        for row, (one, token) in enumerate(zip(moved, tokens, strict=True)):
            self._take(one, token, logits_NV[row])
        return moved

    def _take(self, one: Running, token: int, logits_V: Tensor) -> None:
        if token in one.ends:
            self._end(one, "end")
            return
        if one.num_logprobs is not None:
            # As long as the tokens, should an earlier step have been interrupted in between.
            del one.logprobs[len(one.tokens) :]
            one.logprobs.append(logprobs_of(logits_V, token, one.num_logprobs))
        one.tokens.append(token)
        if len(one.tokens) == one.max_tokens:
            self._end(one, "max_tokens")
        elif one.read == self.runner.plan.context:
            self._end(one, "length")

    def _end(self, one: Running, finish: FinishReason) -> None:
        one.finish = finish
        self.running.remove(one)
        self._free.append(one.slot)


def _parts(sequences: Sequence[Running], rows: int) -> list[_Part]:
    """What to read next of each, the oldest first, as far as whole parts go into `rows`."""
    parts: list[_Part] = []
    for one in sequences:
        part = _Part(one, one.unread)
        if len(part.tokens) <= rows:
            parts.append(part)
            rows -= len(part.tokens)
    return parts
