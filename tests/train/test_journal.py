from contextlib import closing
from pathlib import Path

import pytest

from mixtura.errors import StorageError
from mixtura.runs.journal import Journal, cut, read_journal


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "log.jsonl")) as journal:
        journal.append({"step": 1, "loss": 0.1 + 0.2})
    assert read_journal(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.30000000000000004}]


def test_lines_are_there_before_it_is_closed(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "log.jsonl")) as journal:
        journal.append({"step": 1})
        assert read_journal(tmp_path / "log.jsonl") == [{"step": 1}]


def test_cut_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert [record["step"] for record in read_journal(path)] == [1, 2, 3]
    cut(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_cut_makes_no_file(tmp_path: Path) -> None:
    cut(tmp_path / "log.jsonl", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_a_full_disk_refuses_is_taken_back(full_disk, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with closing(Journal(path)) as journal:
        journal.append({"step": 1})
        # 12 bytes are there, and 5 more fit.
        with full_disk(17), pytest.raises(StorageError, match="free some space"):
            journal.append({"step": 2})
        assert path.read_bytes() == b'{"step": 1}\n'
        journal.append({"step": 2})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_an_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(tmp_path / "absent" / "log.jsonl")
