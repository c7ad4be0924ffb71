"""Hub ids, from a cache that is there and one that is not; no network is asked."""

from pathlib import Path

import pytest

from mixtura.checkpoints.hub import folder_of, is_hub_id
from mixtura.errors import CheckpointError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub library's cache, offline, with one snapshot of one model."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `hf` brings it")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--somebody--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    snapshot = model / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return tmp_path


def test_what_is_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("somebody/tiny")
    assert is_hub_id("somebody/tiny-1.5_b@v2.0")
    for path in ("tiny", "./a/b", "a/b/c", "/a/b", "../b", "a/", "~/models"):
        assert not is_hub_id(path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert not is_hub_id("runs/first")


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert folder_of(str(tmp_path)) == tmp_path
    assert folder_of("nowhere") == Path("nowhere")


def test_what_the_cache_holds_needs_no_network(cache: Path) -> None:
    found = folder_of("somebody/tiny")
    assert (found / "config.json").read_text() == "{}"
    assert found.is_relative_to(cache)


@pytest.mark.usefixtures("cache")
def test_what_it_does_not_hold_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"somebody/other: no such folder, and not in the"):
        folder_of("somebody/other")
    with pytest.raises(CheckpointError, match=r"tiny@v9: no such folder, and not in"):
        folder_of("somebody/tiny@v9")
