"""`python -m tests.fuzz KIND [--cases 20000 | --seed N]`: figures, or one case again, whole."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz import fuzzing, worker


def main() -> int:
    kinds = fuzzing.all_kinds()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("kind", choices=sorted(kinds))
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this case, in this process; its files stay")
    given = parser.parse_args()
    kind = kinds[given.kind]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    if given.seed is not None:
        worker.prepare(kind, folder / "valid")
        (folder / "noise").touch()
        with (folder / "noise").open("r+") as noise:
            outcome = worker.run_case(kind, folder, given.seed, noise.fileno())
        print(f"{folder / 'case'}\n{outcome}\n{outcome.said}")
        return outcome.verdict == "bug"
    tally = fuzzing.fuzz(kind, range(given.first, given.first + given.cases), folder)
    print(tally)
    return bool(tally.bugs)


if __name__ == "__main__":
    sys.exit(main())
