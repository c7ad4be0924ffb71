"""Reads the amount of free memory from Linux's system files, and formats numbers of bytes."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Bytes that are free without swapping and within a container's limit; None if unknown."""
    known = [free for free in (_of_machine(), _of_container()) if free is not None]
    return min(known) if known else None


def _of_machine() -> int | None:
    for line in _read(MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_container() -> int | None:
    limit, used = (_read(CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if not (limit.isdigit() and used.isdigit()):
        return None
    # memory.current counts cached pages of files, which the kernel frees when needed.
    counts = dict(line.split() for line in _read(CGROUP / "memory.stat").splitlines())
    files = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
    return int(limit) - int(used) + files


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def in_words(size: int) -> str:
    """A number of bytes as text, such as "1.50 GB"."""
    amount, units = float(size), ["bytes", "kB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{size} bytes" if units[0] == "bytes" else f"{amount:.2f} {units[0]}"
