"""Freed memory stays with the process: counted in page faults, in a process of its own."""

import subprocess
import sys

import pytest

from mixtura.train.allocator import keep_freed_memory

COUNT = """
import resource, sys
import torch
from mixtura.train.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def allocate(times):
    for _ in range(times):
        torch.ones(64 * 2**20, dtype=torch.uint8)

# Until small blocks of others, which torch asks for at a first call, have found their places.
allocate(16)
before = faults()
allocate(16)
print(faults() - before)
"""


def sixteen_times(how: str) -> str:
    run = [sys.executable, "-c", COUNT, how]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library has no mallopt")
def test_the_same_memory_is_not_asked_for_again() -> None:
    kept, usual = int(sixteen_times("keep")), int(sixteen_times("leave"))
    # Each time 64 MiB: 32 huge or 16,384 small pages. What is kept needs none of them; less than
    # half leaves room for a first use of another place, which a busy machine has seen four times.
    assert usual >= 16 * 32
    assert kept < usual / 2
