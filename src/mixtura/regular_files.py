"""Files of others, opened so that none can keep us waiting or fill the memory.

A named pipe blocks whoever opens it, and /dev/zero has no end: only regular files are read, and of
these no more than was asked for. Each function raises `refusal`, a class of MixturaError, naming
the file; a file that is absent is a FileNotFoundError, since the caller knows what it was for.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mixtura.errors import MixturaError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: Path, refusal: type[MixturaError]) -> BinaryIO:
    """The file, open for reading bytes."""
    # Here, so that what reads files can be imported where there is no such flag.
    from mixtura.posix import O_CLOEXEC, O_NONBLOCK

    try:
        descriptor = os.open(path, os.O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        # A path with a NUL in it, which some config named, is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise refusal(f"{path}: cannot be read ({reason}); give a file that can be") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = next((what for is_kind, what in _KINDS if is_kind(mode)), "no file")
        raise refusal(f"{path}: cannot be read, since it is {found}; give a regular file")
    return os.fdopen(descriptor, "rb")


def check_regular(path: Path, refusal: type[MixturaError]) -> None:
    """For a library that opens files by itself."""
    open_regular(path, refusal).close()


def read_bytes(path: Path, refusal: type[MixturaError], most: int) -> bytes:
    """All of a file of at most `most` bytes."""
    with open_regular(path, refusal) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > most:
            raise refusal(
                f"{path}: is {size:,} bytes long, where {most:,} are allowed; it is no such file, "
                "or was damaged"
            )
        try:
            # A file that grows in the meantime is read as it was.
            return opened.read(size)
        except OSError as error:
            raise refusal(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def read_text(path: Path, refusal: type[MixturaError], most: int) -> str:
    """As read_bytes, in UTF-8."""
    return decoded(read_bytes(path, refusal, most), path, refusal)


def decoded(data: bytes, origin: object, refusal: type[MixturaError]) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        raise refusal(
            f"{origin}: cannot be read as text, since it is not UTF-8 (0x{wrong:02X} at byte "
            f"{error.start}); save it as UTF-8, or copy it again"
        ) from error
