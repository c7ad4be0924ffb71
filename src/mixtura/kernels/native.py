"""The compiled CPU kernels, where this installation has them."""

import importlib
import logging
import os
import sys
from functools import cache
from types import ModuleType
from typing import Literal

from mixtura.errors import ConfigError

InstructionSet = Literal["auto", "plain", "avx2", "avx512", "amx"]
_NUMBERS: dict[InstructionSet, int] = {"plain": 0, "avx2": 1, "avx512": 2, "amx": 3}


@cache
def native() -> ModuleType | None:
    """The module; None where no compiler was found when Mixtura was installed.

    It computes in as many threads as MIXTURA_THREADS or OMP_NUM_THREADS say, else in one for each
    core that this process may use.
    """
    try:
        module = importlib.import_module("mixtura.kernels._native")
    except ImportError:
        return None
    asked = os.environ.get("MIXTURA_THREADS") or os.environ.get("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    set_threads(int(asked) if asked and asked.isdecimal() else cores or 1, module)
    return module


def set_threads(threads: int, module: ModuleType | None = None) -> None:
    """Let the kernels compute in that many threads. Raises ConfigError below 1."""
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
    """As the module counts them. Raises ConfigError for a set that is missing here."""
    offered = instruction_sets()
    if asked == "auto":
        return _NUMBERS[offered[-1]]
    if asked not in offered:
        raise ConfigError(
            f"kernels={asked} were asked for, and this machine offers "
            f"{', '.join(offered) or 'none'}; choose one of those, or auto"
        )
    return _NUMBERS[asked]


@cache
def warn_once_if_missing() -> None:
    """One line where PyTorch has to serve in the kernels' place."""
    if native() is None:
        logging.getLogger("mixtura").warning(
            "mixtura has no compiled kernels here (no C++ compiler was found when it was "
            "installed), so PyTorch unpacks packed weights at each use, which is slow; install a "
            "compiler, then Mixtura again"
        )
