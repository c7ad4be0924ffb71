"""Continuous batching: sequences of tokens begin and end while others go on."""

from collections import abc

from mixtura.engine.runner import Runner
from mixtura.engine.sampling import Sampling
from mixtura.engine.scheduler import Scheduler
from mixtura.engine.sequence import Sequence


class ContinuousBatch(Scheduler):
    """Sequences over one runner: `add` begins one, and `advance` computes a step of all.

    A sequence has ended once its `finish` is set. Sampled token ids are below `known`, such as the
    tokenizer's vocabulary size; by default any id of the model may be sampled.
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
        """Begin a sequence that continues `prompt` until a token of `ends` or `max_tokens` tokens.

        Raises ConfigError for more sequences than the cache has slots, for a prompt that is empty
        or longer than the context, and for tokens outside the model's vocabulary.
        """
        one = Sequence.of(prompt, sampling, max_tokens, ends, logprobs)
        self.begin(one)
        return one
