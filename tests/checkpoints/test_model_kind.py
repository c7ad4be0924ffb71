"""What a path is, by its files' names."""

from pathlib import Path

import pytest

from mixtura.checkpoints.model_kind import what_is


@pytest.mark.parametrize(
    ("files", "name", "kind"),
    [
        (["model.mixtura", "tokenizer.json"], "m", "packed"),
        (["recipe.yaml"], "m", "run"),
        (["config.json", "model.safetensors"], "m", "hf"),
        ([], "m", "hf"),
        # A folder is what it holds, whatever its name ends in.
        (["model.mixtura"], "m.gguf", "packed"),
        (["recipe.yaml"], "m.gguf", "run"),
    ],
)
def test_what_is_tells_a_folder_by_its_files(
    tmp_path: Path, files: list[str], name: str, kind: str
) -> None:
    (tmp_path / name).mkdir()
    for file in files:
        (tmp_path / name / file).touch()
    assert what_is(tmp_path / name) == kind


def test_what_is_tells_a_gguf_file_by_its_suffix(tmp_path: Path) -> None:
    assert what_is(tmp_path / "m.gguf") == "gguf"
