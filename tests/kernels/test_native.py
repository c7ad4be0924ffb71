"""Where the compiled kernels are missing: the installation, and the line that says so."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mixtura.errors import ConfigError
from mixtura.kernels import native as module
from mixtura.kernels.native import native, set_threads, warn_once_if_missing
from mixtura.kernels.packed import groups, tiles

ROOT = Path(__file__).parents[2]


def test_missing_kernels_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "native", lambda: None)
    warn_once_if_missing.cache_clear()

    warn_once_if_missing()
    warn_once_if_missing()

    (record,) = caplog.records
    assert "no compiled kernels" in record.getMessage()
    assert "\n" not in record.getMessage()
    warn_once_if_missing.cache_clear()


def test_no_threads_are_refused():
    with pytest.raises(ConfigError, match="threads=0 must be 1 or more"):
        set_threads(0)


@pytest.mark.skipif(native() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("asked", ["two", "0", "-1"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str):
    monkeypatch.setenv("MIXTURA_THREADS", asked)
    with pytest.raises(ConfigError, match=f"MIXTURA_THREADS={asked} must be a number of 1 or more"):
        native.__wrapped__()


def test_without_kernels_a_set_asked_for_by_name_is_refused(monkeypatch: pytest.MonkeyPatch):
    for user in (groups, tiles):
        monkeypatch.setattr(user, "native", lambda: None)
    monkeypatch.setattr(module, "instruction_sets", lambda: ())
    with pytest.raises(ConfigError, match="kernels=avx2 are missing"):
        groups.quantise(torch.ones(1, 32), 4, kernels="avx2")
    of_ones = groups.quantise(torch.ones(1, 32), 4)
    with pytest.raises(ConfigError, match="kernels=avx2 are missing"):
        tiles.tile(of_ones, kernels="avx2")


# How many threads the process has after each of: a product of torch's, a packed one in torch's
# threads, a packed one while torch has one thread and the kernels two, the same in a forked child.
_THREADS = """
import os, torch
from mixtura.kernels.packed.groups import quantise
from mixtura.kernels.native import native, set_threads
from mixtura.kernels.packed.linear import packed_linear
from mixtura.kernels.packed.tiles import tile

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)
counts = [threads()]
x_TK, tiles = torch.randn(3, 64), tile(quantise(torch.randn(96, 64), 4))
set_threads(2)
lent_TN = packed_linear(x_TK, tiles, 96, 4, "decode")
counts.append(threads())
torch.set_num_threads(1)
own_TN = packed_linear(x_TK, tiles, 96, 4, "decode")
counts.append(threads())
assert torch.equal(lent_TN, own_TN)
torch.set_num_threads(2)
child = os.fork()
if not child:
    same = torch.equal(packed_linear(x_TK, tiles, 96, 4, "decode"), own_TN)
    os._exit(0 if same and threads() == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
print(counts)
"""


@pytest.mark.skipif(native() is None, reason="no compiled kernels here")
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_kernels_compute_in_torch_threads_and_have_their_own_where_they_cannot():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _THREADS], capture_output=True, text=True, check=True
    )
    torch_has, lent, own = json.loads(ran.stdout)
    assert lent == torch_has
    # One more: the caller is the other of the two.
    assert own == torch_has + 1


@pytest.mark.slow
def test_without_a_compiler_the_installation_succeeds_and_says_so(tmp_path: Path):
    copy = tmp_path / "mixtura"
    copy.mkdir()
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("native", "src"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so"))
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", str(tmp_path), copy]
    compilers = {"CXX": "/nowhere/c++", "CC": "/nowhere/cc"}

    done = subprocess.run(
        command, env={**os.environ, **compilers}, capture_output=True, text=True, check=True
    )

    assert "installed without its compiled CPU kernels" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("mixtura-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mixtura/kernels/native.py" in names
    assert not [name for name in names if name.endswith(".so")]
