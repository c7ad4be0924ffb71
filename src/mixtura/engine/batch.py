"""Many sequences of tokens at once, which come and go while others go on."""

from collections import abc

from mixtura.engine.runner import Runner
from mixtura.engine.sampling import Sampling
from mixtura.engine.scheduler import Scheduler
from mixtura.engine.sequence import Sequence


class Batch(Scheduler):
    """Sequences over one runner: `add` them, and `advance` all until each has its `finish`.

    Answers use token ids below `known`, such as the tokenizer's vocabulary size; by default all.
    """

    def __init__(self, runner: Runner, known: int | None = None) -> None:
        super().__init__(runner, known)
        self.runner = runner

    def add(
        self,
        prompt: abc.Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        ends: frozenset[int] = frozenset(),
        logprobs: int | None = None,
    ) -> Sequence:
        """A sequence that goes on from `prompt` until one of `ends`, or `max_tokens`.

        Raises ConfigError for more sequences than the cache was sized for, a prompt that is empty
        or longer than the context, and tokens outside its vocabulary.
        """
        one = Sequence.of(prompt, sampling, max_tokens, ends, logprobs)
        self.begin(one)
        return one
