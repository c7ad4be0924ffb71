"""Selects a colour for every expert; colours differ visibly, and text on them is readable.

Colours are compared in OKLab (Ottosson 2020), whose distances follow perception. Deficient
colour vision is simulated as in Machado, Oliveira and Fernandes (2009), at full severity.

E experts, N candidates, H hues, 3 channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Each level has a lightness and a chroma for a light page, and a lightness and a chroma for a dark
# page. A candidate is one hue at one level.
_LEVELS = (
    ((0.885, 0.062), (0.385, 0.060)),
    ((0.845, 0.105), (0.455, 0.110)),
    ((0.780, 0.130), (0.500, 0.125)),
    ((0.700, 0.050), (0.530, 0.050)),
    ((0.930, 0.095), (0.350, 0.090)),
    ((0.700, 0.130), (0.410, 0.120)),
)
_HUES = 72
_FIRST_HUE = 255.0

_LMS_FROM_OKLAB = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_FROM_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
_PROTANOPIA = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
# Distances in deficient vision are smaller than in normal vision. This factor makes the two
# comparable.
_DEFICIENT_WEIGHT = 2.2
_MOST_EXCHANGES = 500


@dataclass(frozen=True, slots=True)
class Palette:
    """One colour for each expert, as #rrggbb, for a light page and for a dark page."""

    light: tuple[str, ...]
    dark: tuple[str, ...]


def palette(num_experts: int) -> Palette:
    """Select the experts' colours so that even the two most similar colours are far apart.

    A simple, deterministic search selects them from 432 candidates. With more experts than
    candidates, colours repeat.
    """
    light_N3, dark_N3 = _candidates()
    distance_NN = np.minimum(_distances(light_N3), 1.15 * _distances(dark_N3))
    order = _farthest_first(distance_NN, min(num_experts, len(light_N3)))
    order = _exchanged(distance_NN, order)
    chosen_E = [order[expert % len(order)] for expert in range(num_experts)]
    return Palette(
        light=tuple(_hex(light_N3[index]) for index in chosen_E),
        dark=tuple(_hex(dark_N3[index]) for index in chosen_E),
    )


def _candidates() -> tuple[Array, Array]:
    """Each hue at each level as linear RGB, for a light and a dark page, clipped to 0..1."""
    hue_H = np.deg2rad(_FIRST_HUE + np.arange(_HUES) * 360.0 / _HUES)
    light, dark = [], []
    for (lightness, chroma), (dark_lightness, dark_chroma) in _LEVELS:
        light.append(_linear_rgb(lightness, chroma, hue_H))
        dark.append(_linear_rgb(dark_lightness, dark_chroma, hue_H))
    light_N3, dark_N3 = np.concatenate(light), np.concatenate(dark)
    return np.clip(light_N3, 0.0, 1.0), np.clip(dark_N3, 0.0, 1.0)


def _linear_rgb(lightness: float, chroma: float, hue_H: Array) -> Array:
    level_H = np.full_like(hue_H, lightness)
    lab_H3 = np.stack([level_H, chroma * np.cos(hue_H), chroma * np.sin(hue_H)], axis=-1)
    return (lab_H3 @ _LMS_FROM_OKLAB.T) ** 3 @ _RGB_FROM_LMS.T


def _oklab(rgb_N3: Array) -> Array:
    lms_N3 = np.cbrt(rgb_N3 @ np.linalg.inv(_RGB_FROM_LMS).T)
    return lms_N3 @ np.linalg.inv(_LMS_FROM_OKLAB).T


def _distances(rgb_N3: Array) -> Array:
    """For each pair of colours, the smallest of its distances in the three kinds of vision.

    These are normal, deuteranope and protanope vision.
    """
    views = [_between(_oklab(rgb_N3))]
    for matrix in (_DEUTERANOPIA, _PROTANOPIA):
        seen_N3 = np.clip(rgb_N3 @ matrix.T, 0.0, 1.0)
        views.append(_DEFICIENT_WEIGHT * _between(_oklab(seen_N3)))
    return np.minimum.reduce(views)


def _between(lab_N3: Array) -> Array:
    return np.linalg.norm(lab_N3[:, None] - lab_N3[None], axis=-1)


def _farthest_first(distance_NN: Array, count: int) -> list[int]:
    # The search begins with the first hue of the second level, since colours of this level look
    # best, and a report of few experts has only the first colours.
    order = [_HUES]
    nearest_N = distance_NN[order[0]].copy()
    while len(order) < count:
        order.append(int(nearest_N.argmax()))
        nearest_N = np.minimum(nearest_N, distance_NN[order[-1]])
    return order


def _exchanged(distance_NN: Array, order: list[int]) -> list[int]:
    """Replace one of the two closest colours by the candidate that is farthest from the others.

    This is repeated for as long as it increases the smallest distance between two colours.
    """
    order = list(order)
    for _ in range(_MOST_EXCHANGES if len(order) > 1 else 0):
        among = distance_NN[np.ix_(order, order)] + np.diag(np.full(len(order), np.inf))
        closest = among.min()
        for place in np.unravel_index(among.argmin(), among.shape):
            rest = [index for at, index in enumerate(order) if at != place]
            nearest_N = distance_NN[:, rest].min(axis=1)
            if nearest_N.max() > closest:
                order[place] = int(nearest_N.argmax())
                break
        else:
            return order
    return order


def _hex(rgb_3: Array) -> str:
    curved_3 = np.where(rgb_3 <= 0.0031308, 12.92 * rgb_3, 1.055 * rgb_3 ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in curved_3)
