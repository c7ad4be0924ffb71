"""Answers that survive an interruption."""

import json
from pathlib import Path

import pytest

from mixtura.engine.answers_file import AnswersFile, kept_seed, part_of
from mixtura.errors import DataError, StorageError

ASKED = ["model", {"prompt": "a"}]


def test_what_was_cut_in_the_middle_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, ASKED, 7) as kept:
        kept.add(2, {"number": 2, "text": "two \u2028"})
    with part_of(path).open("a", encoding="utf-8") as handle:
        handle.write('{"number": 0, "te')
    assert kept_seed(path) == 7
    assert not path.exists()
    with AnswersFile(path, ASKED, 7) as kept:
        assert kept.done == {2: {"number": 2, "text": "two \u2028"}}
        kept.add(0, {"number": 0, "text": "none"})
        kept.finish()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 2]
    assert not part_of(path).exists()
    assert kept_seed(path) is None
    with pytest.raises(StorageError, match=r"answers\.jsonl: already exists"):
        AnswersFile(path, ASKED, 7)


@pytest.mark.parametrize(("asked", "seed"), [(["another"], 7), (ASKED, 8)])
def test_other_work_is_refused_and_left_alone(tmp_path: Path, asked: object, seed: int) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, ASKED, 7) as kept:
        kept.add(0, {"number": 0})
    before = part_of(path).read_bytes()
    with (
        pytest.raises(DataError, match=r"part: holds answers to other prompts"),
        AnswersFile(path, asked, seed),
    ):
        pass
    assert part_of(path).read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["", "no", "no\n", "[1]\n", '{"kind": "answers"}\n', '{"kind": "answers", "seed": 1}\n[]\n'],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    part_of(path).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"answers\.jsonl\.part"):
        kept_seed(path)
