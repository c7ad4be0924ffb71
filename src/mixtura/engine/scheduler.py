"""Sequences that come and go while others go on: the one loop in which text is generated.

N sequences that a step gives a token.
"""

from collections import abc
from time import perf_counter
from typing import NamedTuple

from mixtura.engine.choosing import choose
from mixtura.engine.kv_cache import check_length
from mixtura.engine.readers import Reader
from mixtura.engine.runner import CHUNK, Part, check_bounds
from mixtura.engine.sequence import FinishReason, Sequence
from mixtura.errors import ConfigError
from mixtura.kernels.phase import Phase


class Scheduler:
    """Sequences over one reader: `add` them, and `advance` all until each has its `finish`.

    Answers are of tokens below `known`, such as the tokenizer's vocabulary; by default of all.
    """

    def __init__(self, reader: Reader, known: int | None = None) -> None:
        self.reader, self._known = reader, known
        self.running: list[Sequence] = []
        self._free = list(reversed(range(reader.slots)))
        self._read_last = False
        self._seconds = 0.0

    def check(self, one: Sequence) -> None:
        """Raises ConfigError for a prompt longer than the context, and for tokens, also of the
        sampling, that the model does not know.
        """
        shape = self.reader.shape
        one.chooser.sampling.check_vocabulary(shape.vocabulary)
        check_length("the prompt", len(one.prompt), self.reader.context, shape)
        remedy = "the model's vocabulary; encode with its own tokenizer"
        check_bounds("token", one.prompt, shape.vocabulary, remedy)

    def begin(self, one: Sequence) -> None:
        """Give it a slot. Raises ConfigError where none is free, and as `check`."""
        self.check(one)
        if not self._free:
            raise ConfigError(
                f"{len(self.running) + 1} sequences exceed the {self.reader.slots} slots that the "
                "cache was sized for; let one end first, or ask for more slots"
            )
        one.slot = self._free.pop()
        self.reader.expect(one.slot, len(one.prompt))
        one.began = one.first = one.last = self._seconds
        self.running.append(one)

    def leave(self, one: Sequence) -> None:
        """End a sequence early; its finish is "interrupted"."""
        if one.finish is None:
            self._end(one, "interrupted")

    def advance(self) -> list[Sequence]:
        """One step; gives the sequences that received a token or ended by it.

        It reads prompts, up to CHUNK tokens of them, or gives each running answer its next token,
        in turn where there are both. After an interruption the same step can be taken again.
        """
        began = perf_counter()
        answers = [one for one in self.running if one.tokens]
        reads = len(answers) < len(self.running) and not (answers and self._read_last)
        if reads:
            step = _chunks((one for one in self.running if not one.tokens), CHUNK)
        elif answers:
            step = _Step([one.next_part() for one in answers], answers, "decode")
        else:
            return []
        self._take(step, began)
        self._read_last = reads
        self._seconds += perf_counter() - began
        return step.moved

    def _take(self, step: "_Step", began: float) -> None:
        logits_NV = self.reader.read(step.parts, step.phase)
        read = self._seconds + perf_counter() - began
        moved, tokens = step.moved, []
        if moved:
            tokens = choose(logits_NV, [one.chooser for one in moved], self._known)
        for one, length in step.chunks:
            one.prompt_read += length
        context = self.reader.context
        for row, (one, token) in enumerate(zip(moved, tokens, strict=True)):
            if not one.tokens:
                one.first = read
            one.take(token, logits_NV[row], context)
            one.last = self._seconds + perf_counter() - began
            if one.finish is not None:
                self._end(one, one.finish)

    def _end(self, one: Sequence, finish: FinishReason) -> None:
        one.finish = finish
        self.running.remove(one)
        self._free.append(one.slot)


class _Step(NamedTuple):
    """What is read in one step."""

    parts: list[Part]
    moved: list[Sequence]
    """that receive a token each, in the order of the parts that ask for one"""
    phase: Phase
    chunks: abc.Sequence[tuple[Sequence, int]] = ()
    """of prompts that go on, with their lengths"""


def _chunks(prompts: abc.Iterable[Sequence], rows: int) -> _Step:
    """What to read next of each, the oldest first, as far as whole parts go into `rows`."""
    parts: list[Part] = []
    moved: list[Sequence] = []
    chunks: list[tuple[Sequence, int]] = []
    for one in prompts:
        part = one.next_part()
        if len(part.tokens) > rows:
            continue
        parts.append(part)
        rows -= len(part.tokens)
        if part.asked:
            moved.append(one)
        else:
            chunks.append((one, len(part.tokens)))
    return _Step(parts, moved, "prefill", chunks)
