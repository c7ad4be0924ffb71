"""Pauses garbage collection, so that commands start faster."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause garbage collection in the block; objects made there are exempt from later collections.

    Modules stay alive until the process ends. To search them repeatedly for reference cycles would
    take a tenth of the time of importing torch.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
