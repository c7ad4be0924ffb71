"""Run the tests with the oldest and with the newest version of each range of pyproject.toml.

Each side, `oldest` and `newest`, has its own environment in build/ranges/, which later runs reuse.
`oldest` has the lowest allowed version of each package in pyproject.toml, and the newest versions
of the packages that those need. `newest` has the highest version of every package. At the end a
table shows the tested versions.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from packaging.specifiers import SpecifierSet

from lock import direct, resolve
from set_up import LOCK, REPOSITORY, SetUpError, installed, normalised, pins, python_of, set_up

RANGES = REPOSITORY / "build" / "ranges"
SIDES = {"oldest": "lowest-direct", "newest": "highest"}


def named() -> dict[str, str]:
    """The packages of pyproject.toml that `make` installs: normalised name -> range."""
    split = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(>=.*)", line) for line in direct()]
    return {normalised(found[1]): found[2] for found in split if found is not None}


def minimum(bound: str) -> str:
    return bound.removeprefix(">=").partition(",")[0]


def test(
    side: str, uv: Path, torch_index: str, arguments: list[str]
) -> tuple[bool, dict[str, str]]:
    """Run the tests with one side; returns whether they pass, and the installed versions.

    Raises SetUpError.
    """
    print(f"== {side} versions", flush=True)
    RANGES.mkdir(parents=True, exist_ok=True)
    lock = RANGES / f"{side}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pip = f"pip=={pins(LOCK)['pip']}"
    lock.write_text(resolve(uv, [pip], "--resolution", SIDES[side], "--python-version", version))
    venv = RANGES / side
    set_up(venv, lock, torch_index=torch_index, build_dir=RANGES / f"{side}-kernels")
    python = python_of(venv)
    tests = subprocess.run([python, "-m", "pytest", *arguments], check=False, cwd=REPOSITORY)
    return tests.returncode == 0, installed(python)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("uv", type=Path)
    parser.add_argument(
        "--side", choices=SIDES, action="append", help="one of the two; both by default"
    )
    parser.add_argument("--torch-index", default="", metavar="URL")
    given, arguments = parser.parse_known_args()
    passed, versions = dict[str, bool](), dict[str, dict[str, str]]()
    try:
        for side in given.side or SIDES:
            passed[side], versions[side] = test(side, given.uv, given.torch_index, arguments)
    except (SetUpError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The next `make test-ranges` goes on from here.", file=sys.stderr)
        return 130
    print(f"{'package':24}{'range':16}" + "".join(f"{side:16}" for side in passed))
    too_low = []
    for name, bound in sorted(named().items()):
        tested = [versions[side].get(name, "-") for side in passed]
        print(f"{name:24}{bound:16}" + "".join(f"{version:16}" for version in tested))
        if "oldest" in passed and not SpecifierSet(f"=={minimum(bound)}").contains(tested[0]):
            too_low.append(name)
    print(f"{'tests':40}" + "".join(f"{'passed' if ok else 'failed':16}" for ok in passed.values()))
    if too_low:
        print(f"Others need newer ones than the minimum of {', '.join(too_low)}: raise it.")
    return 0 if all(passed.values()) and not too_low else 1


if __name__ == "__main__":
    sys.exit(main())
