"""Many draws at once are each sequence's own. N sequences, V vocabulary."""

import pytest
import torch

from mixtura.engine.next_token import TokenSampler, next_tokens
from mixtura.engine.sampling import Sampling, sample
from mixtura.errors import NonFiniteError

WAYS = [
    Sampling(temperature=0),
    Sampling(seed=1),
    Sampling(seed=2),
    Sampling(seed=1, top_k=3),
    Sampling(temperature=0, seed=4),
    Sampling(seed=5, top_p=0.7),
    Sampling(seed=6, temperature=1.7),
]


def test_each_draws_as_it_would_alone() -> None:
    samplers = [TokenSampler(way) for way in WAYS]
    generators = [torch.Generator().manual_seed(way.seed) for way in WAYS]
    noise = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits_NV = torch.randn(len(WAYS), 40, generator=noise) * 2
        expected = [
            int(sample(logits_V, way, generator))
            for logits_V, way, generator in zip(logits_NV, WAYS, generators, strict=True)
        ]
        assert next_tokens(logits_NV, samplers) == expected


def test_neighbours_do_not_draw_from_each_others_generators() -> None:
    noise = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(2, 40, generator=noise)
    alone, together = TokenSampler(Sampling(seed=3)), TokenSampler(Sampling(seed=3))
    for _ in range(20):
        (expected,) = next_tokens(logits_NV[1:], [alone])
        assert next_tokens(logits_NV, [TokenSampler(Sampling(seed=9)), together])[1] == expected


def test_draws_of_a_large_vocabulary_are_those_of_sample() -> None:
    # Several blocks of 1024, the last of them short, and logits of which some are ruled out.
    way = Sampling(seed=3, temperature=2)
    sampler, generator = TokenSampler(way), torch.Generator().manual_seed(way.seed)
    noise = torch.Generator().manual_seed(0)
    for _ in range(200):
        logits_V = torch.randn(5000, generator=noise) * 3
        logits_V[:2100] = -torch.inf
        assert next_tokens(logits_V[None], [sampler]) == [int(sample(logits_V, way, generator))]


@pytest.mark.parametrize("token", [0, 1023, 1024, 2999])
def test_the_only_token_that_is_left_is_drawn(token: int) -> None:
    logits_V = torch.full((3000,), -torch.inf)
    logits_V[token] = -7
    for seed in range(20):
        assert next_tokens(logits_V[None], [TokenSampler(Sampling(seed=seed))]) == [token]


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    logits_V = torch.arange(3000.0)
    assert next_tokens(logits_V[None], [TokenSampler(Sampling(temperature=1e-40))]) == [2999]


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[3]])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("token", [2, 30])
def test_no_number_is_refused(way: Sampling, number: float, token: int) -> None:
    logits_NV = torch.zeros(2, 40)
    logits_NV[1, token] = number
    with pytest.raises(NonFiniteError):
        next_tokens(logits_NV, [TokenSampler(way)] * 2)


def test_a_row_of_which_all_is_ruled_out_is_refused() -> None:
    with pytest.raises(NonFiniteError):
        next_tokens(torch.full((1, 40), -torch.inf), [TokenSampler(WAYS[1])])
