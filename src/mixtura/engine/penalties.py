"""Biases and penalties, which change logits before the next token is sampled.

V vocabulary, N tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixtura.engine.sampling import Sampling


def penalises(sampling: Sampling) -> bool:
    """Whether `penalised` would change a logit."""
    return bool(sampling.logit_bias) or _repetition(sampling) or _counted(sampling)


def penalised(
    logits_V: Tensor, sampling: Sampling, prompt: Sequence[int] | Tensor, answer: Sequence[int]
) -> Tensor:
    """The logits after `logit_bias`, the repetition, the frequency and the presence penalty.

    The repetition penalty changes the logits of tokens in the prompt or in the answer so far, as in
    transformers: it divides a logit from 0 on and multiplies a negative logit, so that a penalty
    above 1 lowers both. CTRL (arXiv 1909.05858) divides every logit. The frequency and presence
    penalties count tokens of the answer alone, by OpenAI's formula:
    `logit - count * frequency_penalty - (count > 0) * presence_penalty`.
    """
    if sampling.logit_bias:
        token_N = torch.tensor(list(sampling.logit_bias))
        bias_N = torch.tensor(list(sampling.logit_bias.values()), dtype=logits_V.dtype)
        logits_V = logits_V.index_add(0, token_N, bias_N)
    answer_N = torch.tensor(answer, dtype=torch.int64)
    if _repetition(sampling):
        token_N = torch.cat([torch.as_tensor(prompt, dtype=torch.int64), answer_N])
        held_N = logits_V[token_N]
        by = sampling.repetition_penalty
        logits_V = logits_V.scatter(0, token_N, torch.where(held_N < 0, held_N * by, held_N / by))
    if _counted(sampling):
        count_V = answer_N.bincount(minlength=len(logits_V)).to(logits_V.dtype)
        taken_V = sampling.frequency_penalty * count_V + sampling.presence_penalty * (count_V > 0)
        logits_V = logits_V - taken_V
    return logits_V


def _repetition(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1


def _counted(sampling: Sampling) -> bool:
    return sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
