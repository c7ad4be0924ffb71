"""Reads untrusted files without blocking the process or filling its memory.

Only regular files are read: a named pipe would block on opening, and /dev/zero has no end. A file
of more than a given number of bytes is refused. The argument `refusal` of each function is the
subclass of MixturaError to raise; the error's message names the file. A missing file raises
FileNotFoundError, so that the caller can state what the file is needed for.
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
    """Open a regular file for reading bytes."""
    # Imported here, because mixtura.posix cannot be imported on Windows.
    from mixtura.posix import O_CLOEXEC, O_NONBLOCK

    try:
        descriptor = os.open(path, os.O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        # A path that contains a NUL character raises ValueError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise refusal(f"{path}: cannot be read ({reason}); give a file that can be") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = next((what for is_kind, what in _KINDS if is_kind(mode)), "no file")
        raise refusal(f"{path}: cannot be read, since it is {found}; give a regular file")
    return os.fdopen(descriptor, "rb")


def check_regular(path: Path, refusal: type[MixturaError]) -> None:
    """Raise the errors of `open_regular`, for a file that a library will open by its path."""
    open_regular(path, refusal).close()


def read_bytes(path: Path, refusal: type[MixturaError], most: int) -> bytes:
    """Read a whole file; a file of more than `most` bytes is refused."""
    with open_regular(path, refusal) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > most:
            raise refusal(
                f"{path}: is {size:,} bytes long, where {most:,} are allowed; it is no such file, "
                "or was damaged"
            )
        try:
            # If the file grows in the meantime, only `size` bytes are read.
            return opened.read(size)
        except OSError as error:
            raise refusal(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def read_text(path: Path, refusal: type[MixturaError], most: int) -> str:
    """Read a whole UTF-8 file; a file of more than `most` bytes is refused."""
    return decoded(read_bytes(path, refusal, most), path, refusal)


def decoded(data: bytes, origin: object, refusal: type[MixturaError]) -> str:
    """Decode UTF-8 bytes. An error's line begins with `origin`, such as a file's name."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        raise refusal(
            f"{origin}: cannot be read as text, since it is not UTF-8 (0x{wrong:02X} at byte "
            f"{error.start}); save it as UTF-8, or copy it again"
        ) from error
