"""Where the compiled kernels are missing: the installation, and the line that says so."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mixtura.errors import ConfigError
from mixtura.kernels import native as module
from mixtura.kernels.native import set_threads, warn_once_if_missing

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
    assert not [name for name in names if "_native" in name]
