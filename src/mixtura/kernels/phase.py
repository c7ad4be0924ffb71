"""Prefill, decode or verify: the phase fixes the order in which kernels sum."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal

Phase = Literal["prefill", "decode", "verify"]
"""a prompt's many rows; one row of each sequence; or several rows of a sequence in the arithmetic
of decode, whose results equal those of as many steps of decode bit for bit"""
# The numbers of phases in native/packed/products.h.
PHASES: dict[Phase, int] = {"decode": 0, "prefill": 1, "verify": 2}

_phase: ContextVar[Phase] = ContextVar("phase", default="prefill")


def current_phase() -> Phase:
    """The phase in which packed modules round activations now."""
    return _phase.get()


@contextmanager
def in_phase(phase: Phase) -> Iterator[None]:
    """Inside the block packed modules compute as in that phase."""
    token = _phase.set(phase)
    try:
        yield
    finally:
        _phase.reset(token)


def decoding() -> AbstractContextManager[None]:
    """The phase in which each row is the next token of its own sequence."""
    return in_phase("decode")
