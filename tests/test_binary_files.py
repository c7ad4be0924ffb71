"""What is no regular file is refused by every reader of binary files, at once and by name."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.checkpoints.gguf.header import read_header as read_gguf
from mixtura.checkpoints.hf.folder import HFFolder
from mixtura.data import Corpus
from mixtura.errors import CheckpointError, DataError, MixturaError
from mixtura.packed.file import PackedFile
from mixtura.runs.checkpoint import read_tensors
from mixtura.trace import TraceReader

Put = Callable[[Path], None]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


PLACES: list[tuple[Put, str]] = [
    (pipe, "a named pipe"),
    (endless, "a device"),
    (folder, "a folder"),
]


@pytest.mark.parametrize(("put", "what"), PLACES)
@pytest.mark.parametrize(
    ("read", "refusal"),
    [
        (read_gguf, CheckpointError),
        (PackedFile, CheckpointError),
        (read_tensors, CheckpointError),
        (TraceReader, DataError),
    ],
)
def test_a_reader_of_one_file(
    tmp_path: Path,
    put: Put,
    what: str,
    read: Callable[[Path], object],
    refusal: type[MixturaError],
) -> None:
    put(tmp_path / "file")
    with pytest.raises(refusal, match=rf"file: cannot be read, since it is {what}; give a regular"):
        read(tmp_path / "file")


@pytest.mark.parametrize(("put", "what"), PLACES)
def test_a_hugging_face_folder(tmp_path: Path, put: Put, what: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    put(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: cannot .* it is {what}"):
        HFFolder(tmp_path)


@pytest.mark.parametrize(("put", "what"), PLACES)
def test_the_token_files_of_a_corpus(
    tiny_run: Path, tiny_cache: Path, tmp_path: Path, put: Put, what: str
) -> None:
    assert tiny_run.exists(), "it made the corpus"
    found = next((tiny_cache / "corpora").glob("*/train.tokens")).parent
    corpus = shutil.copytree(found, tmp_path / "corpus")
    Corpus.open(corpus)
    (corpus / "train.tokens").unlink()
    put(corpus / "train.tokens")
    with pytest.raises(DataError, match=rf"train\.tokens: cannot be read, since it is {what}"):
        Corpus.open(corpus)
