"""JSON of others is read, or refused in one line that names the file."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.errors import CheckpointError, DataError
from mixtura.json_reader import (
    DEPTH,
    DIGITS,
    VALUES,
    parse_json,
    parse_object,
    read_lines,
    read_object,
)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 10**DIGITS, 10**DIGITS - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_parse_json_reads_what_json_writes(tree: object) -> None:
    assert parse_json(json.dumps(tree), "f", DataError) == tree
    assert parse_json(json.dumps(tree, ensure_ascii=False).encode(), "f", DataError) == tree


def test_parse_json_with_infinity() -> None:
    tree = parse_json('{"limit": [0.0, Infinity]}', "f", DataError, infinity=True)
    assert tree == {"limit": [0.0, {"__float__": "Infinity"}]}
    for text in ("[-Infinity]", "[NaN]"):
        with pytest.raises(DataError, match=r"holds (-Infinity|NaN), which is no number"):
            parse_json(text, "f", DataError, infinity=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 64 deep"),
        ('{"a":' * (DEPTH + 1) + "{}" + "}" * (DEPTH + 1), "nested more than 64 deep"),
        ("9" * 5000, r"a number of 5,000 digits \(99999999...\), where 100 are allowed"),
        ('{"eps": 1e400}', "the number 1e400, which is beyond fp64"),
        ("[NaN]", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("[Infinity]", "holds Infinity"),
        ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice in one object"),
        ('["\\ud800"]', r"holds \\ud800, half of a surrogate pair"),
        ('{"\\uDFFF": 1}', r"holds \\udfff"),
        (b"[\xff]", r"not UTF-8 \(0xFF at byte 1\)"),
        ('{"a": }', r"is not JSON \(Expecting value at line 1, column 7\)"),
        ("", "is not JSON"),
        ("[" + "{}," * (VALUES // 2) + "0]", "holds more than 4,194,304 values"),
    ],
)
def test_parse_json_refuses(text: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=f"^config.json: .*{said}") as caught:
        parse_json(text, "config.json", DataError)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[" * DEPTH + "]" * DEPTH, None),
        ("1" + "0" * (DIGITS - 1), 10 ** (DIGITS - 1)),
        # A whole pair, and a backslash before what only looks like half of one.
        ('"\\ud83d\\ude42"', "🙂"),
        ('"\\\\ud800"', "\\ud800"),
        ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
    ],
)
def test_parse_json_reads_up_to_the_bounds(text: str, value: object) -> None:
    found = parse_json(text, "f", DataError)
    assert value is None or found == value


def test_parse_object_shows_little_of_what_is_none() -> None:
    with pytest.raises(DataError, match="expected an object") as caught:
        parse_object(json.dumps(["x" * 10_000]), "f", DataError)
    assert len(str(caught.value)) < 120


def test_read_object_refuses_what_is_no_file(tmp_path: Path) -> None:
    # A pipe that no process writes to would keep us waiting for ever.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, what in [("pipe", "a named pipe"), ("zero", "a device"), (".", "a folder")]:
        with pytest.raises(CheckpointError, match=f"cannot be read, since it is {what}"):
            read_object(tmp_path / name, CheckpointError)
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none", CheckpointError)
    with pytest.raises(CheckpointError, match="embedded null byte"):
        read_object(tmp_path / "a\0b", CheckpointError)
    with pytest.raises(CheckpointError, match="Not a directory"):
        read_object(Path("/dev/null/x"), CheckpointError)


def test_read_object_is_bounded_by_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read_object(path, DataError, most=8) == {"a": 1}
    with pytest.raises(DataError, match="is 8 bytes long, where 7 are allowed"):
        read_object(path, DataError, most=7)
    # Of a file with a hole no byte is read.
    os.truncate(path, 1 << 40)
    with pytest.raises(DataError, match="is 1,099,511,627,776 bytes long"):
        read_object(path, DataError)


def test_read_lines_leaves_out_a_last_line_without_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert list(read_lines(path, DataError)) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert list(read_lines(path, DataError)) == [
        (b'{"step": 1}\n', {"step": 1}),
        (b'{"step": 2}\n', {"step": 2}),
    ]
    os.truncate(path, 1 << 30)
    with pytest.raises(DataError, match="line 3 is longer than 16,777,216 bytes"):
        list(read_lines(path, DataError))


def test_read_lines_names_the_line_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(DataError, match=r"log.jsonl: line 2: expected an object"):
        list(read_lines(path, DataError))
