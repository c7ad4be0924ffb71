"""Functions of MKL that torch's builds for x86 carry and do not offer."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def mkl_function(name: str, arguments: tuple[Any, ...]) -> Callable[..., None] | None:
    """By the name that MKL exports, with the ctypes of its arguments; None where torch has none."""
    for library in sorted(Path(torch.__file__).with_name("lib").glob("libtorch_cpu*")):
        try:
            function = getattr(ctypes.CDLL(str(library)), name)
        except (AttributeError, OSError):
            continue
        function.restype, function.argtypes = None, arguments
        return function
    return None
