"""C functions of the libraries that torch brings along, MKL and OpenMP, which it does not offer."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def torch_function(name: str, arguments: tuple[Any, ...]) -> Callable[..., None] | None:
    """By the name that the library exports, with its ctypes; None where torch has none such."""
    for library in sorted(Path(torch.__file__).with_name("lib").glob("libtorch_cpu*")):
        try:
            # What this library was linked with is searched too.
            function = getattr(ctypes.CDLL(str(library)), name)
        except (AttributeError, OSError):
            continue
        function.restype, function.argtypes = None, arguments
        return function
    return None


def address_of(name: str) -> int | None:
    """Where the function begins, for native code to call."""
    function: Any = torch_function(name, ())
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value
