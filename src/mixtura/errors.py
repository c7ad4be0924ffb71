"""Errors that a user can mend; each names the value, the bound and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager


class MixturaError(ValueError):
    """A user's error: one line that says what was given, what is allowed, and what to do."""


class ConfigError(MixturaError):
    """A recipe or a config that cannot be built: an unknown key, or a value out of bounds."""


class DataError(MixturaError):
    """A corpus or a token file that cannot be used: nothing readable, or truncated."""


class CheckpointError(MixturaError):
    """A run or a checkpoint that is missing, truncated, or of another model."""


class PlatformError(MixturaError, ImportError):
    """A part of Mixtura that this operating system cannot run."""


class NonFiniteError(MixturaError):
    """A loss or an activation that is not finite; names the step and the layer where it began."""


class StorageError(MixturaError):
    """The machine refused: a full disk, no permission, no memory; nothing was half-written."""


class UnexpectedError(MixturaError):
    """A reader failed with an error that it does not translate; `__cause__` has the traceback.

    A user gets one line, as the file is most likely damaged. Tests and fuzzers count it as a bug.
    """


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn every other error of a reader into a MixturaError that names `path`.

    A reader translates a library's errors where it calls the library. This block catches the rest,
    such as a RecursionError or a library's RuntimeError. An OSError that names its file passes.
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
