"""Compiled code: the CPU kernels, where this installation has them, and what torch brings along."""

import ctypes
import importlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch.library import Library

from mixtura.errors import ConfigError

InstructionSet = Literal["auto", "plain", "avx2", "avx512", "amx"]
_NUMBERS: dict[InstructionSet, int] = {"plain": 0, "avx2": 1, "avx512": 2, "amx": 3}

LIBRARY = Library("mixtura", "FRAGMENT")
"""where our ops are defined: the wrappers of `custom_op` cost more than a small product"""

# The OpenMP runtime that torch computes with, as GNU and LLVM both export it: a parallel region, a
# thread's number in it, how many there are, and how many a region of torch's would have.
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_max_threads")


@cache
def native() -> ModuleType | None:
    """The kernels' module; see `compiled`."""
    return compiled("mixtura.kernels._native")


def compiled(name: str) -> ModuleType | None:
    """A compiled module; None where no compiler was found when Mixtura was installed.

    It computes in as many threads as MIXTURA_THREADS says, else in as many as torch does when this
    is called; in torch's own threads as long as torch uses as many. Raises ConfigError for a
    MIXTURA_THREADS that is no such number.
    """
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    set_threads(_threads_asked() or torch.get_num_threads(), module)
    addresses = [address_of(name) for name in _OPENMP]
    if None not in addresses:
        module.borrow_threads(*addresses)
    return module


def _threads_asked() -> int | None:
    asked = os.environ.get("MIXTURA_THREADS")
    if not asked:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(
            f"MIXTURA_THREADS={asked} must be a number of 1 or more; leave it out for as many "
            "threads as torch has"
        )
    return int(asked)


def set_threads(threads: int, module: ModuleType | None = None) -> None:
    """Let a compiled module, or the kernels, compute in that many threads.

    Raises ConfigError below 1.
    """
    if threads < 1:
        raise ConfigError(f"threads={threads} must be 1 or more; leave it out for every core")
    module = module or native()
    if module is not None:
        module.set_threads(threads)


@cache
def instruction_sets() -> tuple[InstructionSet, ...]:
    """What the kernels can use here, the fastest last; nothing where there are none."""
    module = native()
    found = [] if module is None else module.instruction_sets()
    return tuple(known for known in _NUMBERS if known in found)


def number_of(asked: InstructionSet = "auto") -> int:
    """As the module counts them; needs the module. Raises ConfigError for a missing set."""
    check_offered(asked)
    return _NUMBERS[instruction_sets()[-1] if asked == "auto" else asked]


def check_offered(asked: InstructionSet) -> None:
    """Raises ConfigError for a set that is missing here; `auto` never is."""
    offered = instruction_sets()
    if asked != "auto" and asked not in offered:
        raise ConfigError(
            f"kernels={asked} were asked for, and this machine offers "
            f"{', '.join(offered) or 'none'}; choose one of those, or auto"
        )


@cache
def warn_once_if_missing() -> None:
    """One line where PyTorch has to serve in the kernels' place."""
    if native() is None:
        logging.getLogger("mixtura").warning(
            "mixtura has no compiled kernels here (no C++ compiler was found when it was "
            "installed), so PyTorch unpacks packed weights at each use, which is slow; install a "
            "compiler, then Mixtura again"
        )


@cache
def torch_function(name: str, arguments: tuple[Any, ...]) -> Callable[..., None] | None:
    """A C function that the libraries of torch, such as MKL and OpenMP, export and torch does not.

    `arguments` are its ctypes. None where torch has no such function.
    """
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
    """Where the C function begins, for native code to call."""
    function: Any = torch_function(name, ())
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value
