"""Files that appear whole or not at all, on real full disks and with real kills."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixtura.errors import StorageError
from mixtura.files import atomic_folder, atomic_text, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that runs `code`, with the arguments in `sys.argv`."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """As `run`, but returns as soon as the code has printed a line."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()


def test_a_file_is_there_whole_after_the_block_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    with atomic_write(target) as handle:
        handle.write(b"one")
        handle.flush()
        assert not target.exists()
    assert target.read_bytes() == b"one"
    assert names(target.parent) == ["a.bin"]


def test_text_is_written_as_utf8_with_the_usual_rights(tmp_path: Path) -> None:
    atomic_text(tmp_path / "a.txt", "Ünï\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "Ünï\r\n".encode()
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "a.txt").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), FileNotFoundError(2, "")])
def test_an_error_in_the_block_leaves_the_old_file_and_comes_through(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with atomic_write(target) as handle:
            handle.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_folder_appears_whole_with_all_that_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with atomic_folder(target) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text("1")
        assert not target.exists()
    assert (target / "inner" / "a").read_text() == "1"
    assert names(tmp_path) == ["run"]


def test_an_error_in_the_block_leaves_no_folder(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "run") as partial:
            (partial / "a").write_text("1")
            raise KeyError("mine")

    with pytest.raises(KeyError):
        write()
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_before_and_after_the_work(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    with pytest.raises(StorageError, match=r"run: already exists"), atomic_folder(target):
        pytest.fail("the block must not start")
    target.rmdir()
    with pytest.raises(StorageError, match=r"run: already exists"), atomic_folder(target):
        target.mkdir()
    assert names(tmp_path) == ["run"]


def test_a_file_in_the_way_of_a_parent_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.bin: cannot be written \(File exists"):
        atomic_text(tmp_path / "file" / "a.bin", "x")


NO_RIGHTS = """
import os, sys
from pathlib import Path
from mixtura.files import atomic_text
if os.geteuid() == 0:
    os.setuid(65534)
try:
    atomic_text(Path(sys.argv[1]) / "a.txt", "x")
except ValueError as error:
    print(error)
"""


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = run(NO_RIGHTS, str(tmp_path))
    tmp_path.chmod(0o755)
    assert "a.txt: cannot be written (Permission denied); nothing was half-written" in done.stdout
    assert names(tmp_path) == []


# A limit on the size of files refuses a write as a full disk does, for any user.
LIMITED = """
import resource, sys
from pathlib import Path
from mixtura.files import atomic_folder, atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
target = Path(sys.argv[1])
try:
    if sys.argv[2] == "file":
        with atomic_write(target) as handle:
            handle.write(bytes(int(sys.argv[3])))
    else:
        with atomic_folder(target) as partial, (partial / "a").open("wb") as handle:
            handle.write(bytes(int(sys.argv[3])))
except ValueError as error:
    print(type(error).__name__, error)
"""


# 20,001 bytes are refused when the buffer is flushed at the end, a million at once.
@pytest.mark.parametrize("size", [20_001, 1_000_000])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_refused_write_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, kind: str, size: int
) -> None:
    done = run(LIMITED, str(tmp_path / "a"), kind, str(size))
    assert done.stdout.startswith(f"StorageError {tmp_path / 'a'}: cannot be written (File too")
    assert done.stderr == ""
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs root and a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True, capture_output=True)


def fill_file(target: Path) -> None:
    with atomic_write(target) as handle:
        for _ in range(100):
            handle.write(bytes(1000))


def fill_folder(target: Path) -> None:
    with atomic_folder(target) as partial:
        for number in range(100):
            (partial / str(number)).write_bytes(bytes(1000))


@pytest.mark.parametrize("fill", [fill_file, fill_folder])
def test_a_full_disk_is_named_and_its_old_file_stays(
    small_disk: Path, fill: Callable[[Path], None]
) -> None:
    old = small_disk / "old"
    atomic_text(old, "old")
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        fill(small_disk / "new")
    assert names(small_disk) == ["old"]
    assert old.read_text() == "old"
    # The space is free again.
    atomic_text(old, "x" * 50_000)


WRITING = """
import sys, time
from pathlib import Path
from mixtura.files import atomic_folder, atomic_write
target = Path(sys.argv[1])
if sys.argv[2] == "file":
    context = atomic_write(target)
    handle = context.__enter__()
else:
    context = atomic_folder(target)
    handle = (context.__enter__() / "a").open("wb")
handle.write(b"half")
handle.flush()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_leaves_the_target_as_it_was(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    if kind == "file":
        target.write_bytes(b"old")
    process = start(WRITING, str(target), kind)
    kill(process)
    assert (target.read_bytes() == b"old") if kind == "file" else not target.exists()
    left_over = [path for path in tmp_path.iterdir() if path != target]
    assert [path.name.endswith(".partial") for path in left_over] == [True]

    # The next writer of the same target clears it away, once it is no longer brand-new.
    os.utime(left_over[0], (0, 0))
    target.unlink(missing_ok=True)
    with atomic_folder(target):
        pass
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_another_process_is_writing_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    process = start(WRITING, str(target), kind)
    (partial,) = tmp_path.iterdir()
    os.utime(partial, (0, 0))
    atomic_text(target, "mine")
    assert partial.exists()
    kill(process)


def test_left_overs_of_other_targets_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".b*.0123.partial"
    other.touch()
    os.utime(other, (0, 0))
    atomic_text(tmp_path / "b", "x")
    atomic_text(tmp_path / "[b]*", "x")
    assert other.exists()
    atomic_text(tmp_path / "b*", "x")
    assert names(tmp_path) == ["[b]*", "b", "b*"]
