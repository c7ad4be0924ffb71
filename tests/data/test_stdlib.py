"""The standard library as a corpus, as this machine has it."""

import platform
from pathlib import Path

import pytest

from mixtura.data import Document, Skipped, StdlibSource, TextSource
from mixtura.errors import ConfigError, DataError


def documents(source: StdlibSource) -> list[Document]:
    return [item for item in source.read() if isinstance(item, Document)]


def test_it_is_some_megabytes_of_the_library_itself() -> None:
    source = StdlibSource()
    found = {document.name: document for document in documents(source)}
    assert {"json/decoder.py", "textwrap.py", "asyncio/tasks.py"} <= set(found)
    parts = {part for name in found for part in Path(name).parts}
    assert not parts & {"site-packages", "test", "tests", "idlelib", "encodings", "__pycache__"}
    size = sum(len(document.text.encode()) for document in found.values())
    assert 5e6 < size < 30e6
    assert size == pytest.approx(source.size(), rel=0.01)
    assert [document.name for document in documents(source)] == list(found)


def test_nothing_is_lost_without_being_named() -> None:
    assert [item.reason for item in StdlibSource().read() if isinstance(item, Skipped)] == []


def test_a_limit_samples_whole_files_from_all_over() -> None:
    source = StdlibSource(limit_mb=0.5)
    found = documents(source)
    assert sum(len(document.text.encode()) for document in found) <= 500_000
    assert source.size() > 400_000
    assert len({document.name[0] for document in found}) > 5
    assert [document.name for document in documents(source)] == [one.name for one in found]


def test_a_limit_below_every_file_is_refused() -> None:
    with pytest.raises(DataError, match="limit_mb"):
        documents(StdlibSource(limit_mb=1e-9))
    with pytest.raises(ConfigError, match="limit_mb"):
        StdlibSource.parse({"kind": "stdlib", "limit_mb": 0})


def test_its_files_are_cut_into_domains() -> None:
    textwrap = next(item for item in documents(StdlibSource()) if item.name == "textwrap.py")
    assert [span.domain for span in textwrap.spans()][:1] == ["docstring"]
    assert {span.domain for span in textwrap.spans()} >= {"code", "comment", "docstring"}


def test_the_fingerprint_is_the_python_version() -> None:
    assert StdlibSource().fingerprint().endswith(platform.python_version())


def test_a_python_without_its_source_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where some systems keep the library in an archive, its folder holds no .py files.
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="this Python comes without its library's source"):
        StdlibSource().size()


def test_content_of_a_users_python_files_is_cut_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# one\nx = 1\n")
    source = TextSource.parse({"kind": "text", "paths": [str(tmp_path)], "domain": "content"})
    (item,) = source.read()
    assert isinstance(item, Document)
    assert [tuple(span) for span in item.spans()] == [(0, "comment"), (5, "code")]
