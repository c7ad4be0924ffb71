"""Treats Ctrl-C as a request to stop after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """`requested` becomes True at the first SIGINT or SIGTERM; a second signal acts as usual."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def deferred_interrupts() -> Iterator[Interrupt]:
    """Record the first SIGINT or SIGTERM in the block, without its usual effect.

    In a thread other than the main one nothing is recorded, and signals act as usual.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        interrupt.requested = True
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, request)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
