"""Datasets built here on disk, read as the hub's are."""

import json
import sys
from pathlib import Path

import pytest

from mixtura.data import Document, HuggingFaceSource, Skipped
from mixtura.errors import DataError


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes Python refuse the import, as where the package is not installed.
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = HuggingFaceSource(kind="huggingface", name="any")
    for use in (source.size, source.fingerprint, lambda: list(source.read())):
        with pytest.raises(DataError, match=r"needs the package 'datasets': pip install 'mixtura"):
            use()


datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")

ROWS = [
    {"text": "A tale.", "kind": 0},
    {"text": " ", "kind": 0},
    {"text": "1 + 1 = 2", "kind": 1},
    {"text": None, "kind": 1},
    {"text": "2 + 2 = 4", "kind": None},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of JSON lines."""
    path = tmp_path / "tales"
    path.mkdir()
    lines = [json.dumps({**row, "kind": str(row["kind"])}) for row in ROWS]
    (path / "train.jsonl").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(params=["dataset", "splits"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same rows saved by `datasets`, with named labels, alone or as a split among others."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["prose", "sums"])}
    )
    rows = datasets.Dataset.from_list(ROWS, features=features, split="train")
    chosen = datasets.DatasetDict({"train": rows}) if request.param == "splits" else rows
    chosen.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def read(path: Path, **options: object) -> list[tuple[str, ...]]:
    """Domain and text of documents; name and reason of what was skipped."""
    tree = {"kind": "huggingface", "name": str(path), **options}
    return [
        (item.domain, item.text) if isinstance(item, Document) else (item.name, item.reason)
        for item in HuggingFaceSource.parse(tree).read()
    ]


def test_rows_of_a_folder_are_documents(folder: Path) -> None:
    assert read(folder, domain_field="kind") == [
        ("0", "A tale."),
        ("tales/train/1", "empty"),
        ("1", "1 + 1 = 2"),
        ("tales/train/3", "empty"),
        ("None", "2 + 2 = 4"),
    ]
    assert read(folder)[0] == ("tales", "A tale.")


def test_labels_have_their_names(saved: Path) -> None:
    assert [pair for pair in read(saved, domain_field="kind") if pair[1] != "empty"] == [
        ("prose", "A tale."),
        ("sums", "1 + 1 = 2"),
        ("unlabelled", "2 + 2 = 4"),
    ]


def test_a_limit_counts_rows(folder: Path, saved: Path) -> None:
    for path in (folder, saved):
        assert len(read(path, limit_documents=2)) == 2
        assert len(read(path, limit_documents=9)) == 5


def test_size_counts_documents(folder: Path, saved: Path) -> None:
    def size(path: Path, limit: int | None) -> int:
        return HuggingFaceSource(kind="huggingface", name=str(path), limit_documents=limit).size()

    assert [size(folder, None), size(saved, None), size(saved, 2), size(folder, 2)] == [5, 5, 2, 2]


def test_the_fingerprint_follows_the_folder(folder: Path) -> None:
    source = HuggingFaceSource(kind="huggingface", name=str(folder))
    before = source.fingerprint()
    assert source.fingerprint() == before
    (folder / "more.jsonl").write_text('{"text": "more", "kind": "0"}\n')
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text_field": "body"}, "'body'.*not in the dataset"),
        ({"domain_field": "topic"}, "'topic'.*not in the dataset"),
        ({"text_field": "kind"}, "field 'kind' holds int, not text; set data.source.text_field"),
        ({"split": "test"}, "no split 'test'; it has train"),
    ],
)
def test_a_wrong_field_or_split_is_named(saved: Path, options: dict[str, str], told: str) -> None:
    with pytest.raises(DataError, match=f"data.source '{saved}': .*{told}"):
        read(saved, **options)


@pytest.mark.parametrize("limit", [None, 3])
def test_a_damaged_file_is_an_error_in_one_line(folder: Path, limit: int | None) -> None:
    (folder / "train.jsonl").write_text('{"text": "A ta')
    with pytest.raises(DataError, match=f"data.source '{folder}': ") as caught:
        read(folder, limit_documents=limit)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_an_error_in_one_line() -> None:
    with pytest.raises(DataError, match=r"data\.source 'no-such-owner/no-such-name': "):
        read(Path("no-such-owner/no-such-name"))


def test_skipped_rows_are_named_by_their_number(saved: Path) -> None:
    source = HuggingFaceSource(kind="huggingface", name=str(saved))
    assert [item for item in source.read() if isinstance(item, Skipped)] == [
        Skipped("saved/train/1", "empty"),
        Skipped("saved/train/3", "empty"),
    ]
