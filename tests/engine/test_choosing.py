"""Many draws at once are each sequence's own. N sequences, V vocabulary."""

import pytest
import torch

from mixtura.engine.choosing import Chooser, choose
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
    choosers = [Chooser(way) for way in WAYS]
    generators = [torch.Generator().manual_seed(way.seed) for way in WAYS]
    noise = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits_NV = torch.randn(len(WAYS), 40, generator=noise) * 2
        expected = [
            int(sample(logits_V, way, generator))
            for logits_V, way, generator in zip(logits_NV, WAYS, generators, strict=True)
        ]
        assert choose(logits_NV, choosers) == expected


def test_neighbours_do_not_draw_from_each_others_generators() -> None:
    noise = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(2, 40, generator=noise)
    alone, together = Chooser(Sampling(seed=3)), Chooser(Sampling(seed=3))
    for _ in range(20):
        (expected,) = choose(logits_NV[1:], [alone])
        assert choose(logits_NV, [Chooser(Sampling(seed=9)), together])[1] == expected


def test_no_number_is_refused() -> None:
    logits_NV = torch.zeros(2, 5)
    logits_NV[1, 2] = torch.nan
    with pytest.raises(NonFiniteError):
        choose(logits_NV, [Chooser(WAYS[0])] * 2)
