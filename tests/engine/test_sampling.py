"""From logits to a token, by hand; V vocabulary, B sequences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixtura.engine.sampling import Sampling, probabilities, sample
from mixtura.errors import ConfigError, NonFiniteError

# Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 1: logits are their logarithms.
HALVES_V = torch.tensor([1 / 8, 1 / 2, 1 / 8, 1 / 4]).log()


def probs(sampling: Sampling, logits_V: Tensor = HALVES_V) -> list[float]:
    return probabilities(logits_V, sampling).tolist()


def test_temperature_one_draws_from_the_softmax() -> None:
    assert probs(Sampling(temperature=1)) == pytest.approx([1 / 8, 1 / 2, 1 / 8, 1 / 4])


def test_a_temperature_of_one_half_squares_the_odds() -> None:
    # 1/64, 1/4, 1/64, 1/16 over their sum 22/64: 1, 16, 1, 4 in 22nds.
    assert probs(Sampling(temperature=0.5)) == pytest.approx([1 / 22, 16 / 22, 1 / 22, 4 / 22])


def test_top_k_keeps_the_k_likeliest() -> None:
    # 1/2 and 1/4 over 3/4.
    assert probs(Sampling(temperature=1, top_k=2)) == pytest.approx([0, 2 / 3, 0, 1 / 3])


@pytest.mark.parametrize("top_k", [0, 4, 99])
def test_top_k_of_none_or_of_all_keeps_all(top_k: int) -> None:
    expected = [1 / 8, 1 / 2, 1 / 8, 1 / 4]
    assert probs(Sampling(temperature=1, top_k=top_k)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        # 1/2 reaches 0.4 by itself.
        (0.4, [0, 1, 0, 0]),
        # 1/2 falls short of 0.6; with 1/4 it is reached.
        (0.6, [0, 2 / 3, 0, 1 / 3]),
        # 3/4 falls short of 0.8; of the two equal tokens the first one is enough.
        (0.8, [1 / 7, 4 / 7, 0, 2 / 7]),
        (1.0, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, expected: list[float]) -> None:
    assert probs(Sampling(temperature=1, top_p=top_p)) == pytest.approx(expected)


@pytest.mark.parametrize("top_p", [0.1003, 0.5003, 0.9003, 0.9993])
@pytest.mark.parametrize("spread", [0.0, 0.5, 8.0])
def test_a_nucleus_of_any_size_is_that_of_all_tokens_in_order(top_p: float, spread: float) -> None:
    # Many tokens, many of them equal, of which a few or nearly all are kept.
    generator = torch.Generator().manual_seed(0)
    logits_BV = (torch.randn(3, 2000, generator=generator) * spread).round()
    plain_BV = probabilities(logits_BV, Sampling(temperature=1))
    found_BV = probabilities(logits_BV, Sampling(temperature=1, top_p=top_p))
    for plain_V, found_V in zip(plain_BV.tolist(), found_BV.tolist(), strict=True):
        kept, reached = [], 0.0
        for token in sorted(range(2000), key=lambda token: -plain_V[token]):
            if reached >= top_p:
                break
            kept.append(token)
            reached += plain_V[token]
        assert [token for token, p in enumerate(found_V) if p > 0] == sorted(kept)


def test_top_p_is_reached_by_just_as_much() -> None:
    # Two equal logits are 1/2 each, to the last bit.
    assert probs(Sampling(temperature=1, top_p=0.5), torch.zeros(2)) == [1, 0]


def test_top_p_counts_what_top_k_left() -> None:
    # After top_k=2: 2/3 and 1/3. Before it, 1/2 would not have reached 0.6.
    assert probs(Sampling(temperature=1, top_k=2, top_p=0.6)) == pytest.approx([0, 1, 0, 0])


def test_each_row_stands_for_itself() -> None:
    logits_BV = torch.stack([HALVES_V, HALVES_V.flip(0)])
    expected = torch.tensor([[0, 2 / 3, 0, 1 / 3], [1 / 3, 0, 2 / 3, 0]], dtype=torch.float64)
    assert torch.allclose(probabilities(logits_BV, Sampling(temperature=1, top_p=0.6)), expected)


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    logits_V = torch.tensor([1e4, -1e4, 1e4 - 1])
    assert probs(Sampling(temperature=1e-40), logits_V) == [1, 0, 0]


def test_greedy_takes_the_likeliest_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    logits_BV = torch.stack([HALVES_V, HALVES_V.flip(0)])
    assert sample(logits_BV, Sampling(temperature=0), generator).tolist() == [1, 2]
    assert int(sample(HALVES_V, Sampling(temperature=0), generator)) == 1
    assert torch.equal(generator.get_state(), before)


def test_draws_follow_the_probabilities() -> None:
    # 20000 draws with p = 1/2: the share's standard deviation is sqrt(1/4 / 20000) = 0.0035.
    generator = torch.Generator().manual_seed(0)
    token_B = sample(HALVES_V.expand(20_000, -1), Sampling(temperature=1), generator)
    shares = (token_B.bincount(minlength=4) / 20_000).tolist()
    assert shares == pytest.approx([1 / 8, 1 / 2, 1 / 8, 1 / 4], abs=0.015)


def test_a_seed_is_a_draw() -> None:
    def draws(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [int(sample(HALVES_V, Sampling(temperature=1), generator)) for _ in range(20)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_a_token_that_is_ruled_out_never_comes() -> None:
    logits_V = torch.tensor([0.0, -math.inf, 0.0])
    token_B = sample(logits_V.expand(500, -1), Sampling(temperature=5), torch.Generator())
    assert set(token_B.tolist()) == {0, 2}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [[1.0, math.nan], [1.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_refused(bad: list[float], temperature: float) -> None:
    with pytest.raises(NonFiniteError, match="take an earlier checkpoint"):
        sample(torch.tensor(bad), Sampling(temperature=temperature), torch.Generator())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", -0.5, "temperature=-0.5 must be 0 or more; 0 takes the likeliest token"),
        ("temperature", math.nan, "temperature: .* finite number"),
        ("temperature", math.inf, "temperature: .* finite number"),
        ("top_k", -1, "top_k=-1 must be 0 or more; 0 keeps every token"),
        ("top_p", 0, r"top_p=0.0 must lie in \(0, 1\]; 1 keeps every token"),
        ("top_p", 1.5, r"top_p=1.5 must lie in \(0, 1\]; 1 keeps every token"),
        ("seed", -1, r"seed=-1 must lie in 0..2\^63-1; choose another"),
        ("seed", 2**63, "seed=9223372036854775808 must lie within 64 bits"),
    ],
)
def test_a_value_out_of_bounds_names_itself(field: str, value: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Sampling.parse({field: value})


@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=9),
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, 10),
    top_p=st.floats(0.01, 1),
)
def test_whatever_is_kept_are_the_likeliest(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    plain_V = probabilities(torch.tensor(logits), Sampling(temperature=temperature))
    kept_V = probabilities(torch.tensor(logits), sampling)
    assert float(kept_V.sum()) == pytest.approx(1)
    held_V = kept_V > 0
    assert held_V.any()
    assert not top_k or int(held_V.sum()) <= top_k
    if not held_V.all():
        assert plain_V[held_V].min() >= plain_V[~held_V].max()
