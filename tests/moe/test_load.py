"""Load statistics, by hand. E experts, L layers, N routed rows."""

import math
from dataclasses import replace

import pytest
import torch

from mixtura.moe.load import (
    coefficient_of_variation,
    collapsed,
    computed_load,
    dropped_share,
    entropy,
    importance,
    load,
    max_over_mean,
    starving,
)
from mixtura.moe.routing import Routing, token_rows

# Five tokens of two choices among three experts (3: nobody); the last token is padding.
# token 0: 0 and 1; token 1: 0 and 1, of which 1 is lost; token 2: 0 and 2, of which 0 went to 1;
# token 3: 0 and 1, both lost.
CHOSEN = [0, 1, 0, 1, 0, 2, 0, 1, 2, 1]
EXPERT = [0, 1, 0, 3, 1, 2, 3, 3, 3, 3]
WEIGHT = [0.75, 0.25, 0.5, 0.0, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]


def routing(valid: list[bool] | None) -> Routing:
    token_N, choice_N = token_rows(5, 2, torch.device("cpu"))
    return Routing(
        token_N=token_N,
        choice_N=choice_N,
        chosen_N=torch.tensor(CHOSEN),
        expert_N=torch.tensor(EXPERT),
        weight_N=torch.tensor(WEIGHT),
        logits_TE=None,
        probs_TE=None,
        valid_T=None if valid is None else torch.tensor(valid),
        num_experts=3,
        top_k=2,
    )


PADDED = routing([True, True, True, True, False])


def test_load_is_what_was_wished_for() -> None:
    # 0 by tokens 0, 1, 2, 3; 1 by tokens 0, 1, 3; 2 by token 2. Padding wished for 2 and 1.
    assert load(PADDED).tolist() == [4, 3, 1]
    assert load(PADDED).dtype == torch.int64
    assert load(routing(None)).tolist() == [4, 4, 2]


def test_computed_load_is_what_came_of_it() -> None:
    assert computed_load(PADDED).tolist() == [2, 2, 1]


def test_importance_sums_weights_by_the_expert_wished_for() -> None:
    # Expert 0: 0.75 + 0.5 + 0.5; expert 1: 0.25; expert 2: 0.25.
    assert importance(PADDED).tolist() == [1.75, 0.25, 0.25]


def test_importance_is_that_before_capacity_and_without_padding() -> None:
    # Every row had 0.5. Expert 0: four rows; expert 1: three; expert 2: one. The padding's do not
    # count.
    wished = replace(PADDED, terms={"gate_N": torch.full((10,), 0.5)})
    assert importance(wished).tolist() == [2.0, 1.5, 0.5]


def test_dropped_share_leaves_padding_out() -> None:
    # Three of four tokens' eight rows are lost; the padding's two are neither rows nor lost.
    assert dropped_share(PADDED).item() == 3 / 8
    # Without the mask the padding's rows are lost as well: 5 of 10.
    assert dropped_share(routing(None)).item() == 5 / 10


def test_max_over_mean() -> None:
    # 6 over a mean of 3; even; one expert has all.
    load_LE = torch.tensor([[6, 3, 2, 1], [3, 3, 3, 3], [12, 0, 0, 0]])
    assert max_over_mean(load_LE).tolist() == [2, 1, 4]


def test_coefficient_of_variation() -> None:
    # Mean 2, deviations 1 and 1: 1/2. Even: 0. (4, 0, 0, 0): mean 1, variance (9 + 3) / 4 = 3.
    assert coefficient_of_variation(torch.tensor([3, 1])).item() == 0.5
    assert coefficient_of_variation(torch.tensor([5, 5, 5])).item() == 0
    found = coefficient_of_variation(torch.tensor([4, 0, 0, 0])).item()
    assert found == pytest.approx(math.sqrt(3))


def test_entropy() -> None:
    # Shares 1/2, 1/4, 1/4: (ln 2 / 2 + 2 * ln 4 / 4) / ln 3 = 1.5 ln 2 / ln 3.
    assert entropy(torch.tensor([2, 1, 1])).item() == pytest.approx(
        1.5 * math.log(2) / math.log(3), rel=1e-6
    )
    assert entropy(torch.tensor([[7, 7, 7, 7], [9, 0, 0, 0]])).tolist() == pytest.approx([1, 0])
    assert entropy(torch.tensor([5])).item() == 1


def test_a_load_without_a_row_is_even_and_every_expert_starves() -> None:
    load_LE = torch.tensor([[0, 0, 0, 0], [4, 0, 0, 0]])
    assert max_over_mean(load_LE).tolist() == [1, 4]
    assert coefficient_of_variation(load_LE).tolist() == pytest.approx([0, math.sqrt(3)])
    assert entropy(load_LE).tolist() == [1, 0]
    assert starving(load_LE).tolist() == [[True] * 4, [False, True, True, True]]


def test_starving_is_under_a_tenth_of_the_even_share() -> None:
    # Mean 100: 9 starves, 10 is a tenth and does not.
    load_E = torch.tensor([9, 10, 181, 200])
    assert starving(load_E).tolist() == [True, False, False, False]
    # Each layer by its own mean: 9 is no less than a tenth of 30.
    load_LE = torch.tensor([[9, 10, 181, 200], [9, 31, 40, 40]])
    assert starving(load_LE).tolist() == [[True, False, False, False], [False] * 4]


@pytest.mark.parametrize(
    ("load_E", "top_k", "expected"),
    [
        # 90 of 100 is not over 90%; 91 is.
        ([90, 10, 0, 0], 1, False),
        ([91, 9, 0, 0], 1, True),
        # The busiest two: 46 + 45 = 91.
        ([46, 9, 45, 0], 2, True),
        ([46, 9, 45, 0], 1, False),
        # Three of four experts at top-3 hold 75% when even, and 97% here.
        ([33, 33, 33, 1], 3, True),
        ([25, 25, 25, 25], 3, False),
        # top-4 of four has no choice, and top-9 of ten is 90% when even.
        ([100, 0, 0, 0], 4, False),
        ([10] * 9 + [0], 9, False),
        # Nothing was routed yet.
        ([0, 0, 0, 0], 1, False),
    ],
)
def test_collapsed(load_E: list[int], top_k: int, expected: bool) -> None:
    assert collapsed(torch.tensor(load_E), top_k).item() == expected


def test_collapsed_judges_each_layer_by_itself() -> None:
    # Two collapsed layers that mirror each other look even when pooled.
    load_LE = torch.tensor([[100, 0], [0, 100]])
    assert collapsed(load_LE, 1).tolist() == [True, True]
    assert not collapsed(load_LE.sum(0), 1).item()
