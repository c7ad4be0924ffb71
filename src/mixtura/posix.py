"""What Linux and macOS have and Windows lacks: file locks, private mappings, opening without
waiting. Only this module imports them, so that the layers run on Windows.
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
