"""Loads a tokenizer from the folder that holds its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura.config import Config
from mixtura.errors import ConfigError, DataError
from mixtura.json_reader import read_object
from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer, TokenFacts
from mixtura.tokenizers.hugging_face_tokenizer import (
    chat_template_of,
    hugging_face_tokenizer,
    read_text,
    template_origin,
)
from mixtura.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from mixtura.tokenizers.subwords import FILE, MODEL_FILE, FileConfig
from mixtura.tokenizers.tokenizer import DESCRIPTION, ByteTokenizer, Tokenizer


class _Description(Config):
    kind: str
    end_of_document: str | None = None


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer that `Tokenizer.save` wrote, or the tokenizer of a Hugging Face folder.

    Raises DataError if the folder holds no tokenizer, or one that is not supported.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        if not any((folder / name).is_file() for name in (FILE, MODEL_FILE)):
            raise DataError(
                f"{folder}: no tokenizer; expected {DESCRIPTION}, {FILE} or {MODEL_FILE}"
            )
        return hugging_face_tokenizer(folder)
    tree = read_object(path, DataError)
    try:
        if tree.get("kind") == "checkpoint":
            return _checkpoint_tokenizer(folder, tree)
        described = _Description.parse(tree, str(path))
    except ConfigError as error:
        raise DataError(f"{path}: not the description of a tokenizer ({error})") from error
    if described.kind == "bytes":
        return ByteTokenizer()
    if described.kind != "file":
        raise DataError(
            f"{path}: kind {described.kind!r} is unknown; expected bytes, file or checkpoint"
        )
    end = described.end_of_document
    return FileConfig(kind="file", path=str(folder), end_of_document=end).load()


def _checkpoint_tokenizer(folder: Path, tree: Mapping[str, Any]) -> CheckpointTokenizer:
    stated = {key: value for key, value in tree.items() if key != "kind"}
    facts = TokenFacts.parse({**stated, "chat_template": chat_template_of(folder)}, DESCRIPTION)
    kind = CheckpointTokenizer if facts.spelling is None else SentencePieceTokenizer
    tokenizer = kind(read_text(folder / FILE), facts, str(folder / FILE))
    tokenizer.template_origin = template_origin(folder)
    return tokenizer
