"""Renew the lock with the newest compatible versions for all platforms and Python 3.11 or newer.

`make lock` keeps the version of PyTorch, since measured numbers depend on it; `make lock
TORCH=2.14.1` changes it. Run `make check` afterwards to test the new versions.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from set_up import LOCK, REPOSITORY, pins

PYPROJECT = REPOSITORY / "pyproject.toml"
# scikit-build-core installs CMake and Ninja through pip if the machine has none.
BESIDE = ["pip>=25.3", "cmake>=3.20", "ninja>=1.11"]
# Each build of PyTorch requires exact versions of its CUDA libraries and of Triton.
OF_TORCH = re.compile(r"^(nvidia|cuda|triton)-?")
OLDEST_PYTHON = "3.11"
HEAD = """\
# The lock: what `make` and CI install, tested together. Renewed by `make lock`, not by hand.
# pyproject.toml states the ranges that are allowed. What PyTorch alone brings, as the CUDA
# libraries, is left out: each of its builds names its own.
"""


def project() -> dict[str, Any]:
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))


def direct() -> list[str]:
    """The requirements of pyproject.toml for all packages that `make` installs, with ranges."""
    table = project()["project"]
    extras = table["optional-dependencies"]
    found, left = list(table["dependencies"]), ["dev"]
    while left:
        for line in extras[left.pop()]:
            own = re.fullmatch(r"mixtura\[(.*)\]", line)
            if own is None:
                found.append(line)
            else:
                left += own[1].split(",")
    return found


def resolve(uv: Path, requirements: list[str], *options: str) -> str:
    """Resolve `requirements` and pyproject.toml's extra `dev`; returns pins, one a line."""
    named = [*project()["build-system"]["requires"], *BESIDE, *requirements]
    command = [str(uv), "pip", "compile", "--quiet", "--no-header", "--annotation-style", "line"]
    command += ["--extra", "dev", "--group", "tools", *options, "pyproject.toml", "-"]
    resolved = subprocess.run(
        command,
        check=True,
        cwd=REPOSITORY,
        input="\n".join(named),
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = resolved.stdout.splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines if not OF_TORCH.match(line))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uv", type=Path)
    parser.add_argument("--torch", default="", metavar="VERSION")
    given = parser.parse_args()
    torch = given.torch or pins(LOCK)["torch"]
    options = ["--universal", "--fork-strategy", "fewest", "--python-version", OLDEST_PYTHON]
    before = pins(LOCK)
    try:
        text = HEAD + resolve(given.uv, [f"torch=={torch}"], *options)
    except subprocess.CalledProcessError as error:
        return error.returncode
    new = LOCK.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(LOCK)
    after = pins(LOCK)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            print(f"{name}: {before.get(name, 'new')} -> {after.get(name, 'gone')}")
    print(f"{LOCK.name}: {len(after)} packages. Test them: make check")
    return 0


if __name__ == "__main__":
    sys.exit(main())
