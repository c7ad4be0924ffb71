"""Compiled code: the CPU kernels, if this installation has them, and C functions of torch."""

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
"""the library of our ops; wrappers of `custom_op` cost more than a small product"""

# torch's OpenMP runtime, as GNU and LLVM both export it: a parallel region, a thread's number in
# it, the number of threads, and the number that a region of torch's would have.
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_max_threads")


@cache
def native() -> ModuleType | None:
    """The kernels' module; see `compiled`."""
    return compiled("mixtura.kernels._native")


def compiled(name: str) -> ModuleType | None:
    """A compiled module; None where no compiler was found when Mixtura was installed.

    Its number of threads is MIXTURA_THREADS, by default torch's number when this is called; it uses
    torch's own threads as long as torch has as many. Raises ConfigError for a MIXTURA_THREADS that
    is no such number.
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
    """Set the number of threads of a compiled module, by default of the kernels.

    Raises ConfigError below 1.
    """
    if threads < 1:
        raise ConfigError(f"threads={threads} must be 1 or more; leave it out for every core")
    module = module or native()
    if module is not None:
        module.set_threads(threads)


@cache
def instruction_sets() -> tuple[InstructionSet, ...]:
    """The sets that the kernels can use here, the fastest last; empty without kernels."""
    module = native()
    found = [] if module is None else module.instruction_sets()
    return tuple(known for known in _NUMBERS if known in found)


def number_of(name: InstructionSet = "auto") -> int:
    """The module's number of a set. Needs the module; raises ConfigError for a missing set."""
    check_offered(name)
    return _NUMBERS[instruction_sets()[-1] if name == "auto" else name]


def check_offered(name: InstructionSet) -> None:
    """Raises ConfigError for a set that is missing here; `auto` never is."""
    offered = instruction_sets()
    if name != "auto" and name not in offered:
        raise ConfigError(
            f"kernels={name} are missing: this machine offers "
            f"{', '.join(offered) or 'none'}; choose one of those, or auto"
        )


@cache
def warn_once_if_missing() -> None:
    """Warn once that PyTorch replaces the kernels."""
    if native() is None:
        logging.getLogger("mixtura").warning(
            "mixtura has no compiled kernels here (no C++ compiler was found when it was "
            "installed), so PyTorch unpacks packed weights at each use, which is slow; install a "
            "compiler, then Mixtura again"
        )


@cache
def torch_function(name: str, arguments: tuple[Any, ...]) -> Callable[..., None] | None:
    """A C function that torch's libraries, such as MKL and OpenMP, export without a Python API.

    `arguments` are its ctypes. None where torch has no such function.
    """
    for library in sorted(Path(torch.__file__).with_name("lib").glob("libtorch_cpu*")):
        try:
            # Libraries that this one was linked with are searched too.
            function = getattr(ctypes.CDLL(str(library)), name)
        except (AttributeError, OSError):
            continue
        function.restype, function.argtypes = None, arguments
        return function
    return None


def address_of(name: str) -> int | None:
    """The address of the C function, for native code to call."""
    function: Any = torch_function(name, ())
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value
