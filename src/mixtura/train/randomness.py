"""A random state for each trainer, so that two trainers in a process do not disturb each other."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

RandomState = dict[str, Tensor]
"""`cpu`, and on a GPU `cuda`: the generators' states in torch's form, uint8"""


def seeded(seed: int, device: torch.device) -> RandomState:
    state = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    if device.type == "cuda":
        state["cuda"] = torch.Generator(device).manual_seed(seed).get_state()
    return state


@contextmanager
def randomness_of(state: RandomState, device: torch.device) -> Iterator[RandomState]:
    """Inside the block torch's random numbers come from `state`.

    The mapping yielded holds the state at the end of the block, if the block raised nothing.
    Afterwards torch's own state is restored.
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
