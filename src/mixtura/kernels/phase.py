"""Reading a prompt, or adding token after token: what fixes the order in which kernels sum."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal

Phase = Literal["prefill", "decode"]
"""a prompt's many rows, or one row of each sequence"""
# As native/packed/products.h counts them.
PHASES: dict[Phase, int] = {"decode": 0, "prefill": 1}

_phase: ContextVar[Phase] = ContextVar("phase", default="prefill")


def current_phase() -> Phase:
    """What decides the grouping of activations in every packed module that runs now."""
    return _phase.get()


@contextmanager
def in_phase(phase: Phase) -> Iterator[None]:
    """Packed modules called inside compute as in that phase."""
    token = _phase.set(phase)
    try:
        yield
    finally:
        _phase.reset(token)


def decoding() -> AbstractContextManager[None]:
    """The phase in which each row is one more token of a sequence of its own."""
    return in_phase("decode")
