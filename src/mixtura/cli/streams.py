"""Replaces standard streams that the shell closed, as in `mixtura chat RUN <&-`."""

import os
import sys


def open_closed_streams() -> None:
    """Replace each closed standard stream by the null device.

    Python sets a closed stream to None. Besides, the next opened file would get the stream's file
    descriptor, and a library that writes to this descriptor would write into that file.
    """
    for number, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        if null != number and _is_free(number):
            os.dup2(null, number)
            os.close(null)
            null = number
        setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _is_free(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False
