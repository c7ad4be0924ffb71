"""Set up a virtual environment with Mixtura at the versions of a lock. `make` runs this first.

Only Python's standard library is imported, since nothing is installed yet. If a set-up fails or is
stopped, the next one continues it; an environment that is partly installed is created anew.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from progress import Step

REPOSITORY = Path(__file__).parents[1]
LOCK = REPOSITORY / "constraints.txt"
LAST_LINES = 15
RAW = ["--progress-bar", "raw"]


class SetUpError(Exception):
    """The set-up failed; the message is for the user."""


def pins(lock: Path) -> dict[str, str]:
    """The version of each package in a lock, by normalised name; markers are left out."""
    text = lock.read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {normalised(name): version for name, version in found}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def set_up(
    venv: Path,
    lock: Path = LOCK,
    *,
    torch_index: str = "",
    build_dir: Path | None = None,
) -> None:
    """Install the versions of `lock` in `venv`. Raises SetUpError.

    PyTorch comes from `torch_index`, by default from the index of the last set-up.
    """
    versions = pins(lock)
    log, torn, ready = venv / "set-up.log", venv / "torn", venv / "ready"
    python = python_of(venv)
    remove_torn(venv)
    for old in (ready, log):
        old.unlink(missing_ok=True)
    with_lock = ["--constraint", str(lock)]
    try:
        with Step(1, 3, f"{venv.name} and pip {versions['pip']}") as step:
            if not python.exists():
                venv.mkdir(parents=True)
                torn.touch()
                subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            step.run_pip(python, ["install", *with_lock, "pip"], log, torn)
        with Step(2, 3, f"PyTorch {versions['torch']}") as step:
            recorded = venv / "torch-index"
            before = recorded.read_text(encoding="utf-8") if recorded.exists() else ""
            if torch_index and before != torch_index:
                step.run_pip(python, ["uninstall", "--yes", "torch"], log, torn)
            index = torch_index or before
            # An index of PyTorch may have other versions of its dependencies; step 3 corrects them.
            of_index = ["--index-url", index] if index else with_lock
            torch = f"torch=={versions['torch']}"
            step.run_pip(python, ["install", *RAW, *of_index, torch], log, torn)
            recorded.write_text(index, encoding="utf-8")
        with Step(3, 3, "Mixtura, what it needs, and its tools") as step:
            build = ["--build-constraint", str(lock)]
            if build_dir is not None:
                build += ["--config-settings", f"build-dir={build_dir}"]
            what = ["--editable", f"{REPOSITORY}[dev]"]
            step.run_pip(python, ["install", "-v", *RAW, *with_lock, *build, *what], log, torn)
        check(python, versions)
    except subprocess.CalledProcessError as error:
        raise SetUpError(explanation(error, log)) from error
    ready.touch()


def remove_torn(venv: Path) -> None:
    """Remove an environment that a stopped set-up left partly installed."""
    if (venv / "torn").exists() or (venv.exists() and not python_of(venv).exists()):
        print(f"{venv} was left half-installed: it is made afresh.")
        shutil.rmtree(venv)


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def check(python: Path, versions: Mapping[str, str]) -> None:
    """Raises SetUpError if an installed version differs from the lock."""
    wrong = [
        f"{name} {version} instead of {versions[name]}"
        for name, version in installed(python).items()
        # PyTorch's version may end with the name of its build, as in 2.13.0+cpu.
        if name in versions and versions[name] != version.partition("+")[0]
    ]
    if wrong:
        raise SetUpError(f"installed versions are not the lock's: {', '.join(wrong)}")


def installed(python: Path) -> dict[str, str]:
    """The version of each installed package, by normalised name."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "freeze", "--all"]
    freeze = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = re.findall(r"^([\w.-]+)==(\S+)", freeze.stdout, re.MULTILINE)
    return {normalised(name): version for name, version in found}


def explanation(error: subprocess.CalledProcessError, log: Path) -> str:
    """The last lines or errors of pip's output, and the path of its log."""
    if not log.exists():
        return f"{' '.join(error.cmd)} failed with exit status {error.returncode}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.strip() and not line.startswith("Progress ")]
    errors = [line for line in said if line.startswith("ERROR")] or said
    return "\n".join([*errors[-LAST_LINES:], f"pip stopped; all that it said is in {log}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--torch-index", default="", metavar="URL")
    given = parser.parse_args()
    began = time.monotonic()
    try:
        set_up(given.venv, torch_index=given.torch_index)
    except SetUpError as error:
        print(f"{error}\nThe next `make` goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The next `make` goes on from here.", file=sys.stderr)
        return 130
    kernels = list(given.venv.glob("lib/python*/site-packages/mixtura/kernels/_native*"))
    if not kernels:
        print(
            "Without the compiled CPU kernels, as CMake or a C++20 compiler failed: PyTorch's "
            "serve, and packed weights are slow. What the compiler said is in "
            f"{given.venv / 'set-up.log'}."
        )
    print(f"Ready, after {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
