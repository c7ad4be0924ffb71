"""YAML of others is read, or refused in one line that names the file."""

import os
from pathlib import Path

import pytest

from mixtura.errors import ConfigError
from mixtura.yaml_reader import DEPTH, MOST_BYTES, parse_yaml, read_yaml

NINES = "[" + ", ".join(["{}"] * 9) + "]"
# Nine references to nine references ...: 9^9 values in 400 bytes.
BOMB = "a: &a [x]\n" + "".join(
    f"{here}: &{here} {NINES.replace('{}', f'*{before}')}\n"
    for before, here in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = BOMB.replace("&a [x]", "&a {x: 1}").replace("[*", "{<<: [*")
MERGED = MERGED.replace("]\n", "]}\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [2.5, yes, null, text]", {"a": 1, "b": [2.5, True, None, "text"]}),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}),
        # The second mapping stands in a third: x is stated once in each.
        (
            "b: &b {x: 1}\nc: &c {<<: *b, x: 2}\nd: {<<: *c, x: 3}",
            {"b": {"x": 1}, "c": {"x": 2}, "d": {"x": 3}},
        ),
        # Of no use as a date, and this one is none.
        ("a: 2026-11-29\nb: 2026-13-45", {"a": "2026-11-29", "b": "2026-13-45"}),
        ("", None),
    ],
)
def test_parse_yaml_reads(text: str, value: object) -> None:
    assert parse_yaml(text, "f", ConfigError) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", r"a value that holds itself \(line 1, column 8\)"),
        ("a: &a {b: {c: *a}}", "a value that holds itself"),
        (BOMB, "references that stand for more than 50,000 values"),
        (MERGED, "references that stand for more than 50,000 values"),
        ("[" * 100_000, f"nested more than {DEPTH} deep"),
        ("a: &a [1]\nb: &a [*a]", "duplicate anchor 'a'"),
        ("a: 1\nb: 2\na: 3", r"the key 'a' twice in one mapping \(line 3, column 1\)"),
        ("a: " + "9" * 5000, "int of 5,000 characters"),
        ("a: 1.0e+400", "which is no finite number"),
        ("a: .nan", "which is no finite number"),
        ("a: !!int x", "'x', which is no int"),
        ("a: !!bool x", "'x', which is no bool"),
        ("a: !!timestamp x", "could not determine a constructor"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: \x00", "special characters are not allowed"),
        ("--- 1\n--- 2", "expected a single document"),
        ("a: *b", "undefined alias 'b'"),
        ("a: [", "line 1"),
    ],
)
def test_parse_yaml_refuses(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^recipe.yaml: not valid YAML: .*{said}") as caught:
        parse_yaml(text, "recipe.yaml", ConfigError)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 250


def test_a_chain_of_references_is_as_deep_as_what_it_stands_for() -> None:
    # Each line is two deep by itself, and one deeper than the line before by what it refers to.
    lines = ["a0: &a0 [x]", *(f"a{n + 1}: &a{n + 1} [*a{n}]" for n in range(DEPTH))]
    with pytest.raises(ConfigError, match=f"values nested more than {DEPTH} deep"):
        parse_yaml("\n".join(lines), "f", ConfigError)
    assert len(parse_yaml("\n".join(lines[: DEPTH - 2]), "f", ConfigError)) == DEPTH - 2


def test_read_yaml_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="since it is a named pipe"):
        read_yaml(tmp_path / "pipe", ConfigError)
    with pytest.raises(ConfigError, match="since it is a device"):
        read_yaml(Path("/dev/zero"), ConfigError)
    (tmp_path / "large").write_text("#" * (MOST_BYTES + 1))
    with pytest.raises(ConfigError, match="is 131,073 bytes long, where 131,072 are allowed"):
        read_yaml(tmp_path / "large", ConfigError)
    (tmp_path / "latin").write_bytes("name: Zoë".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(tmp_path / "latin", ConfigError)
