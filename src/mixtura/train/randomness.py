"""Gives each trainer in a process its own random state, so that trainers do not interfere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

RandomState = dict[str, Tensor]
"""the states of torch's generators as uint8 tensors: `cpu`, and for a GPU also `cuda`"""


def seeded(seed: int, device: torch.device) -> RandomState:
    state = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    if device.type == "cuda":
        state["cuda"] = torch.Generator(device).manual_seed(seed).get_state()
    return state


@contextmanager
def randomness_of(state: RandomState, device: torch.device) -> Iterator[RandomState]:
    """Set torch's generators to `state` for the block, and afterwards to what they were before.

    The yielded mapping is empty during the block. If the block ends without an error, the mapping
    gets the state that the generators reached.
    """
    outside = _read(device)
    after: RandomState = {}
    _write(state, device)
    try:
        yield after
        after.update(_read(device))
    finally:
        _write(outside, device)


def _read(device: torch.device) -> RandomState:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _write(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
