"""The phase of generation, on which the rounding and the order of sums in kernels depend."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal

Phase = Literal["prefill", "decode", "verify"]
"""`prefill` reads the many rows of a prompt; `decode` reads one row of each sequence; `verify`
reads several rows of a sequence in the arithmetic of decode, so that the results equal those of as
many decode steps bit for bit"""
# The number of each phase in native/packed/products.h.
PHASES: dict[Phase, int] = {"decode": 0, "prefill": 1, "verify": 2}

_phase: ContextVar[Phase] = ContextVar("phase", default="prefill")


def current_phase() -> Phase:
    """The phase in which modules with packed weights compute now."""
    return _phase.get()


@contextmanager
def in_phase(phase: Phase) -> Iterator[None]:
    """A context manager: inside the block, modules with packed weights compute in this phase."""
    token = _phase.set(phase)
    try:
        yield
    finally:
        _phase.reset(token)


def decoding() -> AbstractContextManager[None]:
    """A context manager for the phase `decode`.

    Each row is then the next token of its own sequence.
    """
    return in_phase("decode")
