"""The start of a command that loads a model."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """What is imported and loaded inside is not searched for cycles, then or later.

    Modules stay until the process ends, and searching them again and again takes a tenth of the
    time of importing torch.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
