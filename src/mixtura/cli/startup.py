"""A faster start of commands that load a model."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """A block without garbage collection; its objects are not searched for cycles later, either.

    Modules stay until the process ends, and searching them repeatedly takes a tenth of the time
    of importing torch.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
