"""Untrusted files, opened so that they neither block the process nor fill its memory.

A named pipe blocks on opening, and /dev/zero has no end: only regular files are read, and of these
no more than a stated number of bytes. Each function raises `refusal`, a class of MixturaError,
naming the file. A missing file raises FileNotFoundError, to which the caller adds its purpose.
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
    # Imported here, so that modules that read files can be imported on Windows.
    from mixtura.posix import O_CLOEXEC, O_NONBLOCK

    try:
        descriptor = os.open(path, os.O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        # A path that contains a NUL raises ValueError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise refusal(f"{path}: cannot be read ({reason}); give a file that can be") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = next((what for is_kind, what in _KINDS if is_kind(mode)), "no file")
        raise refusal(f"{path}: cannot be read, since it is {found}; give a regular file")
    return os.fdopen(descriptor, "rb")


def check_regular(path: Path, refusal: type[MixturaError]) -> None:
    """Refuse what `open_regular` refuses, before a library opens the file by itself."""
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
            # A file that grows in the meantime is read up to the size that was checked.
            return opened.read(size)
        except OSError as error:
            raise refusal(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def read_text(path: Path, refusal: type[MixturaError], most: int) -> str:
    """As read_bytes, decoded from UTF-8."""
    return decoded(read_bytes(path, refusal, most), path, refusal)


def decoded(data: bytes, origin: object, refusal: type[MixturaError]) -> str:
    """The text of UTF-8 bytes; an error's line begins with `origin`, such as a file's name."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        raise refusal(
            f"{origin}: cannot be read as text, since it is not UTF-8 (0x{wrong:02X} at byte "
            f"{error.start}); save it as UTF-8, or copy it again"
        ) from error
