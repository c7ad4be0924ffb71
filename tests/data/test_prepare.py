"""From files on disk to a packed corpus, and back to their text."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixtura.data import Corpus, DataConfig, TokenFile, prepare
from mixtura.errors import DataError, StorageError
from mixtura.progress import Progress


def config(*paths: Path, tokenizer: str = "bytes", **source: str) -> DataConfig:
    return DataConfig.parse(
        {
            "source": {"kind": "text", "paths": [str(path) for path in paths], **source},
            "tokenizer": {"kind": tokenizer},
            "heldout": 0.2,
        }
    )


def texts(corpus: Corpus, side: TokenFile) -> list[str]:
    """Each document's text, decoded from its tokens up to the one that ends it."""
    ends = [*side.starts[1:].tolist(), len(side)]
    found: list[str] = []
    for start, end in zip(side.starts.tolist(), ends, strict=True):
        assert side.tokens[end - 1] == corpus.tokenizer.end_of_document
        found.append(corpus.tokenizer.decode(side.tokens[start : end - 1].tolist()))
    return found


def domains(corpus: Corpus, side: TokenFile, text: str) -> list[str]:
    """The domain of each token of the document with that text, its end included."""
    start = int(side.starts[texts(corpus, side).index(text)])
    end = start + len(corpus.tokenizer.encode(text)) + 1
    return [corpus.domains[number] for number in side.domains[start:end]]


EXPECTED = {f"Café number {n}.\n" for n in range(10)} | {
    f"{n} + {n} = {2 * n}\n" for n in range(10)
}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_document_is_on_one_side_with_its_text_and_domain(
    corpus_folder: Path, tmp_path: Path, tokenizer: str
) -> None:
    corpus = prepare(config(corpus_folder, tokenizer=tokenizer), tmp_path / "cache")
    train, heldout = texts(corpus, corpus.train), texts(corpus, corpus.heldout)
    assert {*train, *heldout} == EXPECTED
    assert len(train) + len(heldout) == 20
    assert len(heldout) >= 1
    assert set(corpus.domains) == {"prose", "sums"}
    for text in train:
        expected = "prose" if text.startswith("C") else "sums"
        assert set(domains(corpus, corpus.train, text)) == {expected}


def test_the_numbers_of_a_packed_corpus(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = prepare(config(corpus_folder), tmp_path / "cache")
    # "Café number 0.\n" is 15 characters and 16 bytes; "0 + 0 = 0\n" is 10, and 5 of them 11.
    prose, sums = 10 * 16, 5 * 10 + 5 * 11
    sides = (corpus.train, corpus.heldout)
    assert sum(side.bytes_of_text for side in sides) == prose + sums
    assert sum(side.domain_bytes["prose"] for side in sides) == prose
    # A token a byte, and one for each document's end, which adds no text.
    assert sum(len(side) for side in sides) == prose + sums + 20
    assert sum(int(side.widths.sum()) for side in sides) == prose + sums
    assert corpus.train.tokens.dtype == np.dtype("<u2")
    assert corpus.vocabulary == 257


def test_what_was_left_out_is_named(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = prepare(config(corpus_folder), tmp_path / "cache")
    assert {Path(one.name).name: one.reason.split()[0] for one in corpus.skipped} == {
        "binary.bin": "binary",
        "broken.txt": "unreadable",
        "empty.txt": "empty",
        "latin.txt": "not",
    }
    assert corpus.skipped_count == 4


def test_a_text_that_came_before_is_left_out(corpus_folder: Path, tmp_path: Path) -> None:
    for name in ("copy.txt", "copy of copy.txt"):
        (corpus_folder / "sums" / name).write_text("0 + 0 = 0\n")
    corpus = prepare(config(corpus_folder), tmp_path / "cache")
    assert corpus.duplicates == 2
    both = [*texts(corpus, corpus.train), *texts(corpus, corpus.heldout)]
    assert sorted(both) == sorted(EXPECTED)


def test_domains_inside_a_file_follow_its_characters(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    text = "é = 1  # ñ木\n"
    for n in range(3):
        (folder / f"{n}.py").write_text(f"{text}{'x' * n}", encoding="utf-8")
    for tokenizer in ("bytes", "bpe"):
        corpus = prepare(config(folder, tokenizer=tokenizer, domain="content"), tmp_path / "cache")
        side = corpus.train if text in texts(corpus, corpus.train) else corpus.heldout
        found = domains(corpus, side, text)
        if tokenizer == "bytes":
            # "é = 1  " is 8 bytes, "# ñ木" 1 + 1 + 2 + 3 = 7; the line's end, and the document's.
            assert found == ["code"] * 8 + ["comment"] * 7 + ["code"] * 2
        else:
            # A token on the border, such as " #", has the domain of its end.
            assert (found[0], found[-1]) == ("code", "code")
            assert 7 <= side.domain_bytes["comment"] / len(side.starts) <= 9


def test_the_same_config_finds_the_corpus_again(corpus_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = prepare(config(corpus_folder), cache)
    stages: list[str] = []
    again = prepare(config(corpus_folder), cache, lambda stage, _done, _all: stages.append(stage))
    assert (again.folder, again.digest, stages) == (first.folder, first.digest, [])

    (corpus_folder / "sums" / "new.txt").write_text("1 + 2 = 3\n")
    changed = prepare(config(corpus_folder), cache)
    assert changed.folder != first.folder
    assert changed.digest != first.digest


def test_a_moved_corpus_is_split_and_packed_as_before(corpus_folder: Path, tmp_path: Path) -> None:
    before = prepare(config(corpus_folder), tmp_path / "cache")
    moved = tmp_path / "elsewhere" / "corpus"
    moved.parent.mkdir()
    corpus_folder.rename(moved)
    assert prepare(config(moved), tmp_path / "cache").digest == before.digest


def test_a_training_sample_leaves_the_heldout_text_alone(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"{chr(0x4E00 + n) * 50} {n}")
    corpus = prepare(config(folder, tokenizer="bpe"), tmp_path / "cache")

    def length(text: str) -> int:
        return len(corpus.tokenizer.encode(text.split(maxsplit=1)[0]))

    # 50 characters of 3 bytes, the first two of which others share: merged to the full where the
    # tokenizer was trained on them, two tokens each elsewhere.
    assert {length(text) for text in texts(corpus, corpus.heldout)} == {100}
    assert all(length(text) < 10 for text in texts(corpus, corpus.train))


def test_a_small_sample_is_drawn_from_all_over(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for n in range(100):
        (folder / f"{n:03}.txt").write_text(f"{chr(0x4E00 + n) * 100}")
    tree = config(folder, tokenizer="bpe").model_dump()
    tree["tokenizer"]["sample_mb"] = 0.003
    corpus = prepare(DataConfig.parse(tree), tmp_path / "cache")
    # 3,000 bytes are ten of the texts, which alone were merged.
    everything = texts(corpus, corpus.train)
    merged = [text for text in everything if len(corpus.tokenizer.encode(text)) < 100]
    assert len(merged) == 10
    assert min(merged) < chr(0x4E00 + 40) < max(merged)


def test_progress_reaches_its_end(corpus_folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    progress: Progress = lambda *call: calls.append(call)  # noqa: E731
    prepare(config(corpus_folder, tokenizer="bpe"), tmp_path / "cache", progress)
    assert [stage for stage, _, _ in calls] == (
        ["sampling for the tokenizer"] * 21 + ["training the tokenizer"] + ["packing"] * 21
    )
    # 20 documents of 265 bytes; the files that are none have 5 + 2 + 4.
    assert calls[-2:] == [("packing", 265, 276), ("packing", 276, 276)]


@pytest.mark.parametrize("name", ["binary.bin", "empty.txt", "latin.txt", "broken.txt"])
def test_a_source_with_nothing_readable_is_refused(
    corpus_folder: Path, tmp_path: Path, name: str
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(
        DataError, match=rf"kind=text: no text is left; skipped 1, the first being .*{name}: "
    ):
        prepare(config(corpus_folder / name), cache)
    assert list(cache.iterdir()) == []


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: a folder without files"):
        prepare(config(tmp_path / "nothing"), tmp_path / "cache")


def test_a_single_document_is_refused_until_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_text("\n\n".join(f"Line {n}." for n in range(30)))
    with pytest.raises(DataError, match=r"play\.txt is the only document.*separator"):
        prepare(config(path), tmp_path / "cache")
    corpus = prepare(config(path, separator="\n\n"), tmp_path / "cache")
    assert len(corpus.train.starts) + len(corpus.heldout.starts) == 30


def test_more_domains_than_a_byte_numbers_are_refused(tmp_path: Path) -> None:
    for n in range(257):
        (tmp_path / "corpus" / f"d{n}").mkdir(parents=True)
        (tmp_path / "corpus" / f"d{n}" / "a.txt").write_text(f"{n}")
    with pytest.raises(DataError, match="is the 257th domain and 256 are possible"):
        prepare(config(tmp_path / "corpus"), tmp_path / "cache")


def test_an_interrupted_preparation_leaves_nothing(corpus_folder: Path, tmp_path: Path) -> None:
    def interrupt(_stage: str, done: int, _all: int) -> None:
        if done > 100:
            raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        prepare(config(corpus_folder), cache, interrupt)
    assert list(cache.iterdir()) == []


LIMITED = """
import json, resource, sys
from pathlib import Path
from mixtura.data import DataConfig, prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    prepare(DataConfig.parse(json.loads(sys.argv[1])), Path(sys.argv[2]))
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_leaves_nothing(corpus_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", LIMITED, config(corpus_folder).model_dump_json(), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{StorageError.__name__} {cache}/text-")
    assert list(cache.iterdir()) == []


def test_two_processes_may_prepare_the_same_corpus(corpus_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    other: list[Corpus] = []

    def overtaken(stage: str, _done: int, _all: int) -> None:
        if stage == "packing" and not other:
            other.append(prepare(config(corpus_folder), cache))

    mine = prepare(config(corpus_folder), cache, overtaken)
    assert mine.folder == other[0].folder
    assert [path.name for path in cache.iterdir()] == [mine.folder.name]


PARTS = [
    f"{side}.{part}"
    for side in ("train", "heldout")
    for part in ("tokens", "domains", "widths", "starts")
]


@pytest.mark.parametrize("part", PARTS)
def test_a_truncated_file_is_named_with_its_sizes(
    corpus_folder: Path, tmp_path: Path, part: str
) -> None:
    folder = prepare(config(corpus_folder), tmp_path / "cache").folder
    whole = (folder / part).read_bytes()
    (folder / part).write_bytes(whole[:-1])
    told = rf"{part}: {len(whole) - 1} bytes where {len(whole)} are expected; remove {folder} and"
    with pytest.raises(DataError, match=told):
        prepare(config(corpus_folder), tmp_path / "cache")
    (folder / part).unlink()
    with pytest.raises(DataError, match=rf"{part}: No such file or directory; remove"):
        Corpus.open(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 2}', "\ufffd"])
def test_damaged_meta_is_named(corpus_folder: Path, tmp_path: Path, content: str) -> None:
    folder = prepare(config(corpus_folder), tmp_path / "cache").folder
    (folder / "meta.json").write_text(content, encoding="utf-16")
    with pytest.raises(DataError, match=r"meta\.json: .*remove .* and prepare it again"):
        Corpus.open(folder)
    (folder / "meta.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"meta\.json: .*remove .* and prepare it again"):
        Corpus.open(folder)


def test_a_folder_that_is_no_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prepared corpus; meta\.json is missing"):
        Corpus.open(tmp_path)


def test_the_library_is_prepared_without_the_network(tmp_path: Path) -> None:
    tree = {"source": {"kind": "stdlib", "limit_mb": 0.4}}
    corpus = prepare(DataConfig.parse(tree), tmp_path / "cache")
    assert {"code", "comment", "docstring"} <= set(corpus.domains)
    assert 300_000 < corpus.train.bytes_of_text + corpus.heldout.bytes_of_text <= 400_000
    meta = json.loads((corpus.folder / "meta.json").read_text())
    assert meta["digest"] == corpus.digest
    assert len(corpus.digest) == hashlib.sha256().digest_size * 2
