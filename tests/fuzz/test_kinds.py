"""No file of a stranger ends in a traceback, a crash, a hang, or a machine without memory."""

import os
from pathlib import Path

import pytest
from tests.fuzz.fuzzing import all_kinds, fuzz

KINDS = all_kinds()
SLOW_CASES = int(os.environ.get("MIXTURA_FUZZ_CASES", "20000"))


@pytest.mark.parametrize("name", KINDS)
def test_a_few_spoilt_files(name: str, tmp_path: Path) -> None:
    tally = fuzz(KINDS[name], range(KINDS[name].fast_cases), tmp_path)
    assert not tally.bugs, str(tally)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", KINDS)
def test_many_spoilt_files(name: str, tmp_path: Path) -> None:
    tally = fuzz(KINDS[name], range(SLOW_CASES), tmp_path)
    print(tally)
    assert not tally.bugs, str(tally)
    # Else the cases try one line of one parser again and again.
    assert tally.past_first_parse * 3 >= tally.cases, str(tally)
