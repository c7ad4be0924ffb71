"""Reading a prompt, adding token after token, or verifying: what fixes how kernels sum."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal

Phase = Literal["prefill", "decode", "verify"]
"""A prompt's many rows, one row of each sequence, or several rows of a sequence in the arithmetic
of decode: bit for bit what as many steps of decode give."""
# As native/packed/products.h counts them.
PHASES: dict[Phase, int] = {"decode": 0, "prefill": 1, "verify": 2}

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
