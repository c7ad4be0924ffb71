"""Errors that a user can correct. Each message names the value, its bound and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager


class MixturaError(ValueError):
    """An error in the user's input. One line states the input, the allowed values and a remedy."""


class ConfigError(MixturaError):
    """A recipe or a config that cannot be built: an unknown key, or a value out of bounds."""


class DataError(MixturaError):
    """A corpus, a token file or a trace that cannot be used, for example a truncated one."""


class CheckpointError(MixturaError):
    """A run or a checkpoint that is missing or truncated, or that belongs to another model."""


class PlatformError(MixturaError, ImportError):
    """This operating system cannot run a part of Mixtura."""


class NonFiniteError(MixturaError):
    """A loss or an activation is not finite; the message names the place where this began."""


class StorageError(MixturaError):
    """The operating system refused, for example because the disk is full or memory ran out.

    No partly written file remains.
    """


class UnexpectedError(MixturaError):
    """A reader failed with an exception that it does not expect; `__cause__` is that exception.

    The user gets one line, because the file is most likely damaged. Tests and fuzzers count the
    error as a bug of the reader.
    """


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Convert every unexpected exception of a reader into a MixturaError that names `path`.

    A reader converts a library's expected errors where it calls the library. This block converts
    all others, such as a RecursionError. An OSError that names its file passes unchanged.
    """
    try:
        yield
    except MixturaError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if isinstance(error, OSError):
            raise StorageError(f"{path}: cannot be read ({error}); copy it again") from error
        if memory_ran_out(error):
            raise StorageError(
                f"{path}: memory ran out while it was read ({error}); choose a smaller model, or "
                "one that is packed"
            ) from error
        raise UnexpectedError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); it is damaged, or shows a "
            "mistake of Mixtura's: MIXTURA_TRACEBACK=1 shows where"
        ) from error


def memory_ran_out(error: BaseException) -> bool:
    """Whether an allocation failed: a MemoryError of Python, or a RuntimeError of torch."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            words in str(error)
            for words in ("allocate memory", "not enough memory", "out of memory")
        )
    )
