"""The next token of each of many sequences, which sample in their own ways.

N sequences, V vocabulary.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from mixtura.engine.penalties import penalised, penalises
from mixtura.engine.sampling import Sampling, check_finite, draw
from mixtura.kernels.native import native


class Chooser:
    """How one sequence draws: its generator is its own, so its tokens are the same in any batch.

    Penalties look at `prompt` and at `answer`, to which its owner appends each token.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] = (),
        answer: Sequence[int] = (),
        generator: Generator | None = None,
    ) -> None:
        self.sampling = sampling
        # On the CPU, so that a seed means the same text on every device.
        self.generator = generator or Generator().manual_seed(sampling.seed)
        self.penalises = penalises(sampling)
        self._answer = answer
        # Made a tensor once: it may be long, and stays as it is.
        self._prompt_N = torch.tensor(prompt if self.penalises else (), dtype=torch.int64)

    @property
    def way(self) -> Literal["greedy", "at once", "one by one"]:
        if self.sampling.temperature == 0:
            return "greedy"
        narrowing = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p)
        return "at once" if narrowing == (0, 1, 0) else "one by one"

    def penalised(self, logits_V: Tensor) -> Tensor:
        return penalised(logits_V, self.sampling, self._prompt_N, self._answer)


def choose(logits_NV: Tensor, choosers: Sequence[Chooser], known: int | None = None) -> list[int]:
    """As `sample` of its penalised logits for each by itself. Raises NonFiniteError.

    A padded model has more tokens than its tokenizer: those from `known` on are never chosen, and
    their logits become -inf.
    """
    if known is not None and known < logits_NV.shape[1]:
        # A model computes in inference mode, and what it gives is changed in no other.
        with torch.inference_mode():
            logits_NV[:, known:] = -torch.inf
    if any(chooser.penalises for chooser in choosers):
        rows = zip(logits_NV, choosers, strict=True)
        logits_NV = torch.stack(
            [one.penalised(logits_V) if one.penalises else logits_V for logits_V, one in rows]
        )
    ways = [chooser.way for chooser in choosers]
    if logits_NV.dtype != torch.float32 or native() is None:
        ways = ["one by one" if way == "at once" else way for way in ways]
    token_N = [0] * len(choosers)
    if together := [number for number, way in enumerate(ways) if way == "at once"]:
        drawn = _drawn_at_once(logits_NV, together, choosers)
        for number, token in zip(together, drawn, strict=True):
            token_N[number] = token
    if len(together) < len(choosers):
        check_finite(logits_NV)
    if greedy := [number for number, way in enumerate(ways) if way == "greedy"]:
        likeliest = logits_NV[greedy].argmax(-1).tolist()
        for number, token in zip(greedy, likeliest, strict=True):
            token_N[number] = token
    for number, way in enumerate(ways):
        if way == "one by one":
            # Row by row: each has a generator, and one row of numbers stays in the CPU's cache.
            chooser = choosers[number]
            token_N[number] = int(draw(logits_NV[number], chooser.sampling, chooser.generator))
    return token_N


def _drawn_at_once(logits_NV: Tensor, numbers: list[int], choosers: Sequence[Chooser]) -> list[int]:
    """`draw` for rows whose every token has its chance, by the compiled kernel."""
    own = [choosers[number] for number in numbers]
    temperatures = [one.sampling.temperature for one in own]
    uniforms = [
        float(torch.empty((), dtype=torch.float64).uniform_(generator=one.generator)) for one in own
    ]
    logits_NV, module = logits_NV.contiguous(), native()
    assert module is not None, "asked before"
    drawn = module.draw(logits_NV.data_ptr(), logits_NV.shape[1], numbers, temperatures, uniforms)
    if min(drawn) < 0:
        check_finite(logits_NV)
    return drawn
