"""The next token of each of many sequences, each with its own settings of sampling.

N sequences, V vocabulary.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from mixtura.engine.penalties import penalised, penalises
from mixtura.engine.sampling import Sampling, check_finite, sample_finite
from mixtura.kernels.native import native


class TokenSampler:
    """The settings of sampling and the random generator of one sequence.

    Each sequence has its own generator, so its tokens are the same in any batch. Penalties read
    `prompt` and `answer`; the caller appends each new token to `answer`.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] = (),
        answer: Sequence[int] = (),
        generator: Generator | None = None,
    ) -> None:
        self.sampling = sampling
        # A generator on the CPU gives the same numbers for a seed on every device.
        self.generator = generator or Generator().manual_seed(sampling.seed)
        self.penalises = penalises(sampling)
        self._answer = answer
        # The prompt may be long and never changes, so it is converted once.
        self._prompt_N = torch.tensor(prompt if self.penalises else (), dtype=torch.int64)

    @property
    def way(self) -> Literal["greedy", "at once", "one by one"]:
        """`at once` means no top-k, top-p or min-p: one native call samples many sequences."""
        if self.sampling.temperature == 0:
            return "greedy"
        narrowing = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p)
        return "at once" if narrowing == (0, 1, 0) else "one by one"

    def penalised(self, logits_V: Tensor) -> Tensor:
        return penalised(logits_V, self.sampling, self._prompt_N, self._answer)


def next_tokens(
    logits_NV: Tensor, samplers: Sequence[TokenSampler], known: int | None = None
) -> list[int]:
    """A token for each row, as `sample` gives for the penalised logits of the row alone.

    A padded model has more tokens than its tokenizer: logits from `known` on become -inf, so these
    tokens are never sampled. Raises NonFiniteError for NaN, for +inf, and where all logits of a row
    are -inf.
    """
    if known is not None and known < logits_NV.shape[1]:
        # The logits were computed in inference mode, and only that mode may change them in place.
        with torch.inference_mode():
            logits_NV[:, known:] = -torch.inf
    if any(sampler.penalises for sampler in samplers):
        rows = zip(logits_NV, samplers, strict=True)
        logits_NV = torch.stack(
            [one.penalised(logits_V) if one.penalises else logits_V for logits_V, one in rows]
        )
    ways = [sampler.way for sampler in samplers]
    if logits_NV.dtype != torch.float32 or native() is None:
        ways = ["one by one" if way == "at once" else way for way in ways]
    token_N = [0] * len(samplers)
    if together := [number for number, way in enumerate(ways) if way == "at once"]:
        sampled = _sampled_at_once(logits_NV, together, samplers)
        for number, token in zip(together, sampled, strict=True):
            token_N[number] = token
    if len(together) < len(samplers):
        check_finite(logits_NV)
    if greedy := [number for number, way in enumerate(ways) if way == "greedy"]:
        likeliest = logits_NV[greedy].argmax(-1).tolist()
        for number, token in zip(greedy, likeliest, strict=True):
            token_N[number] = token
    for number, way in enumerate(ways):
        if way == "one by one":
            # Row by row: each row has its own generator, and one row fits into the CPU's cache.
            sampler = samplers[number]
            token_N[number] = int(
                sample_finite(logits_NV[number], sampler.sampling, sampler.generator)
            )
    return token_N


def _sampled_at_once(
    logits_NV: Tensor, numbers: list[int], samplers: Sequence[TokenSampler]
) -> list[int]:
    """As `sample_finite` for these rows, in one call of the compiled kernel.

    The settings of these rows must have no top-k, top-p or min-p.
    """
    own = [samplers[number] for number in numbers]
    temperatures = [one.sampling.temperature for one in own]
    uniforms = [
        float(torch.empty((), dtype=torch.float64).uniform_(generator=one.generator)) for one in own
    ]
    logits_NV, module = logits_NV.contiguous(), native()
    assert module is not None, "next_tokens checks this"
    sampled = module.draw(logits_NV.data_ptr(), logits_NV.shape[1], numbers, temperatures, uniforms)
    if min(sampled) < 0:
        check_finite(logits_NV)
    return sampled
