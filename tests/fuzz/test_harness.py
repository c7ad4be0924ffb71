"""The harness tells each sort of bug from a refusal, and a seed makes the same case again."""

from pathlib import Path
from random import Random

import pytest
from tests.fuzz.fuzzing import fuzz
from tests.fuzz.mutations import Raw, json_text, spoilt_bytes, spoilt_tree
from tests.fuzz.sick_kind import DEEDS, Sick

SAYS = {
    "refuse without a name": "names no file: something is wrong",
    "raise": "KeyError: 'deed'",
    "hang": 'sick_kind.py", line',
    "crash": "the process ended with -11",
    "fill memory": "MemoryError",
    "fill memory and refuse": "ran out of memory before it said: ",
    "print": "wrote to the terminal: thread panicked at",
    "leave": "SystemExit: 0",
    "warn": "UserWarning: odd",
}


def deed_of(seed: int) -> str:
    return Random(f"sick {seed}").choice(DEEDS)


def test_every_sort_of_bug_is_seen(tmp_path: Path) -> None:
    seeds = {deed_of(seed): seed for seed in range(200)}
    assert set(seeds) == set(DEEDS)
    tally = fuzz(Sick(), list(seeds.values()), tmp_path)
    said = {bug.seed: bug.said for bug in tally.bugs.values()}
    assert {deed: seed in said for deed, seed in seeds.items()} == {
        deed: deed in SAYS for deed in DEEDS
    }
    for deed, words in SAYS.items():
        assert words in said[seeds[deed]]
        assert f"--seed {seeds[deed]}" in str(tally)
    assert tally.verdicts["accepted"] == tally.verdicts["refused"] == 1
    # "refuse" alone is not past the first parse; of the two that end the worker it is unknown.
    assert tally.past_first_parse == len(DEEDS) - 3


def test_memory_is_what_a_case_adds(tmp_path: Path) -> None:
    tally = fuzz(Sick(), range(3), tmp_path)
    assert tally.largest is not None
    # Nothing here touches memory: "fill memory" is refused all of it at once.
    assert tally.largest.memory < 64 << 20


@pytest.mark.parametrize("seed", range(50))
def test_a_seed_spoils_in_one_way(seed: int) -> None:
    tree = {"a": [1, 2.5, {"b": None}], "c": {"d": "text", "e": [True, "x"]}}
    once, again = (json_text(spoilt_tree(Random(seed), tree), Random(seed)) for _ in range(2))
    assert once == again
    assert spoilt_bytes(Random(seed), b"some bytes") == spoilt_bytes(Random(seed), b"some bytes")
    assert tree == {"a": [1, 2.5, {"b": None}], "c": {"d": "text", "e": [True, "x"]}}


def test_raw_text_stands_as_it_is() -> None:
    assert json_text({"a": Raw("1e400"), "b": [Raw("[[")]}) == '{"a": 1e400, "b": [[[]}'
