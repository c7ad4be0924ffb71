"""What a name stands for: a model known by name, or what lies in a folder of that name."""

from pathlib import Path

import pytest

from mixtura.checkpoints.inspection import inspect_model
from mixtura.errors import CheckpointError


def test_a_known_name_needs_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = inspect_model("mixtral-8x7b")
    assert (found.model, found.family, found.groups) == ("mixtral-8x7b", "mixtral", ())
    # The sum is in tests/shapes/test_known.py.
    assert found.shape.total_parameters() == 46_702_792_704


def test_a_folder_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixtral-8x7b").mkdir()
    with pytest.raises(CheckpointError, match=r"mixtral-8x7b/config\.json: no such file"):
        inspect_model("mixtral-8x7b")
