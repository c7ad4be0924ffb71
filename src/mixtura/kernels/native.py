"""Access to compiled code: Mixtura's CPU kernels, and C functions in torch's libraries."""

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
"""the library of Mixtura's torch ops; calling an op through `torch.library.custom_op` would take
longer than a small matrix product"""

# Functions of torch's OpenMP runtime, which GNU's and LLVM's runtimes both export. The first runs a
# parallel region; the others give a thread's number in the region, the region's number of threads,
# and the default number of threads.
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_max_threads")


@cache
def native() -> ModuleType | None:
    """The module of the compiled kernels, or None; see `compiled`."""
    return compiled("mixtura.kernels._native")


def compiled(name: str) -> ModuleType | None:
    """A compiled module; None if no compiler was found when Mixtura was installed.

    The environment variable MIXTURA_THREADS sets the module's number of threads; by default it is
    the number of threads that torch has at the time of this call. The module runs in torch's own
    threads as long as both numbers of threads are equal. Raises ConfigError if MIXTURA_THREADS is
    not a whole number of 1 or more.
    """
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    set_threads(_threads_setting() or torch.get_num_threads(), module)
    addresses = [address_of(name) for name in _OPENMP]
    if None not in addresses:
        module.borrow_threads(*addresses)
    return module


def _threads_setting() -> int | None:
    setting = os.environ.get("MIXTURA_THREADS")
    if not setting:
        return None
    if not setting.isdecimal() or int(setting) < 1:
        raise ConfigError(
            f"MIXTURA_THREADS={setting} must be a number of 1 or more; leave it out for as many "
            "threads as torch has"
        )
    return int(setting)


def set_threads(threads: int, module: ModuleType | None = None) -> None:
    """Set the number of threads of a compiled module, by default of the kernels' module.

    Raises ConfigError for a number below 1.
    """
    if threads < 1:
        raise ConfigError(f"threads={threads} must be 1 or more; leave it out for every core")
    module = module or native()
    if module is not None:
        module.set_threads(threads)


@cache
def instruction_sets() -> tuple[InstructionSet, ...]:
    """The instruction sets that the kernels can use on this machine, the fastest last.

    It is empty without compiled kernels.
    """
    module = native()
    found = [] if module is None else module.instruction_sets()
    return tuple(known for known in _NUMBERS if known in found)


def number_of(name: InstructionSet = "auto") -> int:
    """The number that the kernels' module gives to an instruction set; `auto` is the fastest set.

    The module must exist. Raises ConfigError for a set that this machine does not offer.
    """
    check_offered(name)
    return _NUMBERS[instruction_sets()[-1] if name == "auto" else name]


def check_offered(name: InstructionSet) -> None:
    """Raises ConfigError for a set that this machine does not offer; `auto` is always offered."""
    offered = instruction_sets()
    if name != "auto" and name not in offered:
        raise ConfigError(
            f"kernels={name} are missing: this machine offers "
            f"{', '.join(offered) or 'none'}; choose one of those, or auto"
        )


@cache
def warn_once_if_missing() -> None:
    """Log a warning, only once, if the kernels are missing, so that PyTorch computes instead."""
    if native() is None:
        logging.getLogger("mixtura").warning(
            "mixtura has no compiled kernels here (no C++ compiler was found when it was "
            "installed), so PyTorch unpacks packed weights at each use, which is slow; install a "
            "compiler, then Mixtura again"
        )


@cache
def torch_function(name: str, arguments: tuple[Any, ...]) -> Callable[..., None] | None:
    """A C function that torch's libraries, such as MKL and OpenMP, export without a Python API.

    `arguments` are the ctypes of the function's arguments. The result is None if torch's libraries
    have no such function.
    """
    for library in sorted(Path(torch.__file__).with_name("lib").glob("libtorch_cpu*")):
        try:
            # This also searches the libraries with which libtorch_cpu is linked.
            function = getattr(ctypes.CDLL(str(library)), name)
        except (AttributeError, OSError):
            continue
        function.restype, function.argtypes = None, arguments
        return function
    return None


def address_of(name: str) -> int | None:
    """The address of a C function in torch's libraries, for native code; None if there is none."""
    function: Any = torch_function(name, ())
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value
