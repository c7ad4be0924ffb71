"""The next token of each of many sequences, which sample in their own ways.

N sequences, V vocabulary.
"""

from collections.abc import Sequence

from torch import Generator, Tensor

from mixtura.engine.sampling import Sampling, check_finite, draw


class Chooser:
    """How one sequence draws: its generator is its own, so its tokens are the same in any batch."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        # On the CPU, so that a seed means the same text on every device.
        self.generator = Generator().manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0


def choose(logits_NV: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """As `sample` for each by itself. Raises NonFiniteError."""
    check_finite(logits_NV)
    token_N = [0] * len(choosers)
    greedy = [number for number, chooser in enumerate(choosers) if chooser.greedy]
    if greedy:
        likeliest = logits_NV[greedy].argmax(-1).tolist()
        for number, token in zip(greedy, likeliest, strict=True):
            token_N[number] = token
    for number, chooser in enumerate(choosers):
        if not chooser.greedy:
            # Row by row: each has a generator, and one row of numbers stays in the CPU's cache.
            drawn = draw(logits_NV[number], chooser.sampling, chooser.generator)
            token_N[number] = int(drawn)
    return token_N
