"""Files, folders and globs: what is read, under which domain, and what is named and skipped."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixtura.config import ConfigError
from mixtura.data import Document, Skipped, TextSource
from mixtura.errors import DataError


def source(*paths: Path | str, **options: str) -> TextSource:
    tree = {"kind": "text", "paths": [str(path) for path in paths], **options}
    return TextSource.parse(tree)


def documents(source: TextSource) -> dict[str, tuple[str, str]]:
    """By name: domain and text."""
    return {
        item.name: (item.domain, item.text) for item in source.read() if isinstance(item, Document)
    }


def skipped(source: TextSource) -> dict[str, str]:
    """By the file's name: the reason."""
    return {
        Path(item.name).name: item.reason for item in source.read() if isinstance(item, Skipped)
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """corpus/{top.txt, prose/{a.txt, deep/b.md}, code/c.py, .hidden/d.txt}"""
    for name, text in {
        "top.txt": "top",
        "prose/a.txt": "a",
        "prose/deep/b.md": "b",
        "code/c.py": '"""Doc."""\nx = 1\n',
        ".hidden/d.txt": "d",
    }.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "corpus"


def test_a_folder_is_read_whole_and_labelled_by_its_folders(tree: Path) -> None:
    assert documents(source(tree)) == {
        "corpus/top.txt": ("corpus", "top"),
        "corpus/code/c.py": ("code", '"""Doc."""\nx = 1\n'),
        "corpus/prose/a.txt": ("prose", "a"),
        "corpus/prose/deep/b.md": ("prose", "b"),
    }


def test_a_file_by_itself_is_its_own_domain(tree: Path) -> None:
    assert documents(source(tree / "prose" / "a.txt")) == {"a.txt": ("a", "a")}


def test_a_glob_is_labelled_from_where_its_wildcards_begin(tree: Path) -> None:
    assert documents(source(tree / "*" / "*.txt")) == {"corpus/prose/a.txt": ("prose", "a")}
    assert list(documents(source(tree / "**" / "*.md"))) == ["corpus/prose/deep/b.md"]
    # A folder that matches is read whole.
    assert list(documents(source(tree / "pro*"))) == [
        "corpus/prose/a.txt",
        "corpus/prose/deep/b.md",
    ]


def test_a_path_with_the_letters_of_a_glob_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    assert list(documents(source(tmp_path / "a[1].txt"))) == ["a[1].txt"]


def test_content_labels_by_kind_of_file_and_cuts_python(tree: Path) -> None:
    found = documents(source(tree, domain="content"))
    assert {name: domain for name, (domain, _) in found.items()} == {
        "corpus/top.txt": "txt",
        "corpus/code/c.py": "code",
        "corpus/prose/a.txt": "txt",
        "corpus/prose/deep/b.md": "md",
    }
    cut = [item for item in source(tree, domain="content").read() if item.name.endswith("c.py")]
    assert isinstance(cut[0], Document)
    assert [span.domain for span in cut[0].spans()] == ["docstring", "code"]


def test_a_separator_cuts_a_file_into_documents(tmp_path: Path) -> None:
    path = tmp_path / "plays.txt"
    path.write_text("one\n\ntwo\n\n\n\nthree\n")
    assert documents(source(path, separator="\n\n")) == {
        "plays.txt#0": ("plays", "one"),
        "plays.txt#1": ("plays", "two"),
        "plays.txt#3": ("plays", "three\n"),
    }


def test_a_file_is_read_once_however_often_it_is_named(tree: Path) -> None:
    (tree / "link.txt").symlink_to(tree / "top.txt")
    names = list(documents(source(tree / "top.txt", tree, tree / "*.txt")))
    assert [name for name in names if "top" in name or "link" in name] == ["top.txt"]


def test_files_of_one_name_keep_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.txt").write_text(folder)
    paths = [tmp_path / "a" / "data.txt", tmp_path / "b" / "data.txt"]
    assert list(documents(source(*paths))) == ["data.txt", str(paths[1])]


def test_what_is_no_text_is_named_with_the_reason(corpus_folder: Path) -> None:
    os.mkfifo(corpus_folder / "pipe")
    (corpus_folder / "loop").symlink_to("loop")
    assert skipped(source(corpus_folder)) == {
        "binary.bin": "binary (NUL at byte 2)",
        "empty.txt": "empty",
        "latin.txt": "not UTF-8 (0xe9 at byte 3)",
        "broken.txt": "unreadable (No such file or directory)",
        "pipe": "not a regular file",
        "loop": "unreadable (Too many levels of symbolic links)",
    }
    assert len(documents(source(corpus_folder))) == 20


def test_a_truncated_character_at_the_end_is_named(tmp_path: Path) -> None:
    # "é" is two bytes, and the second is missing.
    (tmp_path / "cut.txt").write_bytes("caf\u00e9".encode()[:-1])
    assert skipped(source(tmp_path)) == {"cut.txt": "not UTF-8 (0xc3 at byte 3)"}


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "nothing" / "inner").mkdir(parents=True)
    assert skipped(source(tmp_path / "nothing")) == {"nothing": "a folder without files"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may reach, and for the test's time rights that are not root's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        user = os.geteuid()
        yield Path(name)
        os.seteuid(user)


def test_a_file_or_folder_without_permission_is_named(open_folder: Path) -> None:
    (open_folder / "top.txt").touch(0)
    (open_folder / "prose").mkdir(0)
    (open_folder / "read.txt").write_text("text")
    if os.geteuid() == 0:
        os.seteuid(65534)
    assert len(documents(source(open_folder))) == 1
    assert skipped(source(open_folder)) == {
        "top.txt": "unreadable (Permission denied)",
        "prose": "unreadable (Permission denied)",
    }


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext\r\n")
    assert documents(source(tmp_path / "a.txt")) == {"a.txt": ("a", "text\r\n")}


def test_a_name_that_is_not_utf8_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in (b"\xff.txt", b"\xfe.bin"):
        path = os.path.join(os.fsencode(folder), name)  # noqa: PTH118
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(b"text" if name.endswith(b"txt") else b"\0")
    assert list(documents(source(folder))) == ["corpus/\ufffd.txt"]
    assert skipped(source(folder)) == {"\ufffd.bin": "binary (NUL at byte 0)"}


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    for path in ("missing.txt", "missing/*.txt"):
        with pytest.raises(DataError, match="no such file or folder, and no glob that matches"):
            list(source(tmp_path / path).read())
    for paths in ("", [], [""]):
        with pytest.raises(ConfigError, match="paths"):
            TextSource.parse({"kind": "text", "paths": paths})


def test_a_single_path_needs_no_list(tree: Path) -> None:
    assert TextSource.parse({"kind": "text", "paths": str(tree)}) == source(tree)


def test_the_fingerprint_follows_the_files(tree: Path) -> None:
    text = source(tree)
    before = text.fingerprint()
    assert text.fingerprint() == before
    os.utime(tree / "top.txt", ns=(1, 1))
    after = text.fingerprint()
    assert after != before
    (tree / "new.txt").write_text("new")
    assert text.fingerprint() != after


def test_size_is_in_bytes(tree: Path) -> None:
    # top + a + b + the 17 bytes of c.py: 3 + 1 + 1 + 17.
    assert (source(tree).size(), source(tree).unit) == (22, "bytes")
