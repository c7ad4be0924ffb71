"""Experts' colours: different, and readable under the page's ink."""

from itertools import combinations

import pytest

from mixtura.insight.palette import palette

LIGHT_INK, DARK_INK = "#1b1b22", "#f3f2ee"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    # Black on white is (1 + 0.05) / (0 + 0.05) = 21.
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize("num_experts", [1, 2, 8, 64, 128])
def test_colours_are_different_and_text_on_them_is_readable(num_experts: int) -> None:
    colours = palette(num_experts)
    assert len(set(colours.light)) == len(set(colours.dark)) == num_experts
    # WCAG 2 asks 4.5 of small text.
    assert min(contrast(colour, LIGHT_INK) for colour in colours.light) >= 4.5
    assert min(contrast(colour, DARK_INK) for colour in colours.dark) >= 4.5


def closest(colours: tuple[str, ...]) -> int:
    """The least distance of two colours, as the sum of differences in their channels."""
    channels = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours]
    return min(
        sum(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in combinations(channels, 2)
    )


def test_few_experts_have_colours_far_apart() -> None:
    # Of 765, three channels of 255. Sixteen are harder to keep apart than eight.
    assert closest(palette(8).light) > closest(palette(16).light) > 30
    assert closest(palette(8).dark) > 50


def test_any_number_of_experts_has_colours() -> None:
    assert len(palette(1000).light) == 1000
    assert palette(0).light == ()
