"""The machine's limits: raw reads of memory, and multiply-adds of 8-bit numbers."""

import mmap
import time

import numpy as np
import torch

from mixtura.kernels.native import compiled, instruction_sets, number_of, set_threads
from sides.side import Setting

# Several times the size of CPU caches, and small compared with the models.
_BYTES = 1 << 30
_SIDE = 4096


class Limits:
    """Each read continues where the last one ended, so that it does not find cached data."""

    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        self._module = compiled("mixtura.kernels._limits")
        set_threads(setting.threads, self._module)

    def about(self) -> dict[str, str]:
        how = "Mixtura's native module" if self._module else "PyTorch, in want of a native module"
        return {"package": how, "built_with": torch.backends.cpu.get_cpu_capability()}

    def load(self) -> int:
        # A separate mapping, for which madvise can request huge pages.
        area = mmap.mmap(-1, _BYTES)
        area.madvise(mmap.MADV_HUGEPAGE)
        self._words = torch.from_numpy(np.frombuffer(area, np.int64))
        self._words.fill_(1)
        self._at = 0
        if not self._module:
            self._square = torch.ones(_SIDE, _SIDE, dtype=torch.int8)
        return 0

    def read(self, count: int) -> float:
        """Seconds to read `count` bytes."""
        began = time.perf_counter()
        left = count // 8
        while left:
            taken = min(left, len(self._words) - self._at)
            self._read(self._words[self._at : self._at + taken])
            self._at = (self._at + taken) % len(self._words)
            left -= taken
        return time.perf_counter() - began

    def peaks(self, seconds: float) -> dict[str, float]:
        """1e9 multiply-adds per second for each instruction set, each measured for `seconds`."""
        if self._module:
            found = {
                f"int8 {name}": self._module.peak_int8(number_of(name), seconds) / 1e9
                for name in instruction_sets()
                if name != "plain"
            }
            if "amx" in instruction_sets():
                found["bf16 amx"] = self._module.peak_bfloat(seconds) / 1e9
            return found
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds or not done:
            torch._int_mm(self._square, self._square)
            done += 1
        return {"int8 torch._int_mm": done * _SIDE**3 / (time.perf_counter() - began) / 1e9}

    def _read(self, words: torch.Tensor) -> None:
        if self._module:
            self._module.read_bytes(words.data_ptr(), words.numel() * 8)
        else:
            words.sum()
