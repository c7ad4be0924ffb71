"""Prints an error as one line on stderr, and returns the exit status that belongs to it."""

import errno
import os
import sys
import traceback

from mixtura.errors import MixturaError
from mixtura.terminal_text import one_line

MISTAKE = 2
INTERRUPTED = 130
TRACEBACK = "MIXTURA_TRACEBACK"
"""the environment variable with which a traceback is printed before an error's line"""

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "ask for permission or choose another place",
    errno.EPERM: "ask for permission or choose another place",
    errno.ENOENT: "check the path",
}


def status_of(error: MixturaError | OSError) -> int:
    """Print an error that the user can correct, and return its exit status."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    if isinstance(error, MixturaError):
        return mistake(str(error))
    _settle_output()
    if isinstance(error, BrokenPipeError):
        # The program that reads the output closed the pipe, as in `mixtura generate ... | head`.
        # In most cases Typer catches this error earlier, and also exits with status 1.
        return 1
    return mistake(_describe(error))


def mistake(message: str) -> int:
    """Print an error in one line, and return the exit status 2."""
    print(one_line(f"mixtura: {message}"), file=sys.stderr)
    return MISTAKE


def _describe(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{place}{error.strerror or error}" + (f"; {remedy}" if remedy else "")


def _settle_output() -> None:
    """Discard output that cannot be written, so that Python's flush at exit does not fail too."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
