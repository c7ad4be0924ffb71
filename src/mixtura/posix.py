"""Names for file locks, private memory mappings and non-blocking opening, which Windows lacks.

Only this module imports them from the standard library. The MoE layers do not import this module,
so that they run on Windows.
"""

from mixtura.errors import PlatformError

try:
    import fcntl
    from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
    from os import O_CLOEXEC, O_NONBLOCK
except ImportError as error:
    raise PlatformError(
        f"files are read and written on Linux and macOS alone ({error}), so that on Windows only "
        "the layers of mixtura run; run the rest within WSL 2"
    ) from error

__all__ = [
    "MAP_ANONYMOUS",
    "MAP_PRIVATE",
    "O_CLOEXEC",
    "O_NONBLOCK",
    "PROT_READ",
    "PROT_WRITE",
    "fcntl",
]
