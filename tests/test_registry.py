"""Values by name, some of another package."""

import sys
from pathlib import Path

import pytest

from mixtura.registry import Registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that announces a colour."""
    (tmp_path / "outside_colours.py").write_text(
        "from tests.test_registry import COLOURS\nCOLOURS.add('ochre', 3)\n"
    )
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mixtura.colours]\nochre = outside_colours\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "ochre"


COLOURS: Registry[int] = Registry("colour", "mixtura.colours")
COLOURS.add("red", 1)


def test_get_gives_what_was_added() -> None:
    assert COLOURS.get("red") == 1
    assert "red" in COLOURS.values


def test_add_refuses_a_name_in_use() -> None:
    with pytest.raises(ValueError, match="colour='red' is registered already"):
        COLOURS.add("red", 2)


@pytest.mark.parametrize("name", ["reed", ["red"], None, {}])
def test_get_names_what_is_known(name: object) -> None:
    with pytest.raises(ValueError, match=r"colour=.* is unknown; choose one of red.*, or import"):
        COLOURS.get(name)


def test_get_imports_what_an_entry_point_announces(package: str) -> None:
    assert package not in COLOURS.values
    assert package in COLOURS.names()
    assert COLOURS.get(package) == 3
    COLOURS.remove(package)
    sys.modules.pop("outside_colours")
