"""Which positions are seen, drawn by hand: a row a token, # where it sees."""

import pytest
import torch
from torch import Tensor

from mixtura.models.attention_mask import attention_mask

CPU = torch.device("cpu")


def drawn(mask_SL: Tensor) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in mask_SL.tolist()]


def test_a_window_counts_the_token_itself() -> None:
    seen = attention_mask(5, 5, CPU, window=3)
    assert not seen.causal
    assert drawn(seen.full(5, 5, CPU)) == ["#....", "##...", "###..", ".###.", "..###"]


def test_a_window_goes_on_through_a_cache() -> None:
    # The last two rows of the five above; one new token alone sees three of five as well.
    assert drawn(attention_mask(2, 5, CPU, window=3).full(2, 5, CPU)) == [".###.", "..###"]
    assert drawn(attention_mask(1, 5, CPU, window=3).full(1, 5, CPU)) == ["..###"]


def test_a_window_of_one_sees_the_token_alone() -> None:
    assert drawn(attention_mask(3, 3, CPU, window=1).full(3, 3, CPU)) == ["#..", ".#.", "..#"]


@pytest.mark.parametrize("window", [None, 4, 9])
def test_a_window_as_long_as_the_text_cuts_nothing(window: int | None) -> None:
    assert attention_mask(4, 4, CPU, window).causal
    assert attention_mask(1, 4, CPU, window).mask is None
    assert drawn(attention_mask(2, 4, CPU, window).full(2, 4, CPU)) == ["###.", "####"]


def test_padding_is_unseen_but_by_itself() -> None:
    # One text padded on the left by two, one on the right by one.
    valid_BL = torch.tensor([[False, False, True, True], [True, True, True, False]])
    left, right = attention_mask(4, 4, CPU, window=2, valid_BL=valid_BL).full(4, 4, CPU).squeeze(1)
    assert drawn(left) == ["#...", ".#..", "..#.", "..##"]
    assert drawn(right) == ["#...", "##..", ".##.", "..##"]
