"""How torch's threads wait for work."""

import os


def wait_asleep() -> None:
    """Before torch is imported: let its threads sleep between products rather than spin.

    The compiled kernels have threads of their own, and a core that spins for torch is lost to them
    for milliseconds: decoding ran at a quarter of its speed. Whoever set OMP_WAIT_POLICY keeps it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
