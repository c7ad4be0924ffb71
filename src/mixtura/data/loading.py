"""A tokenizer from the folder where it was saved."""

import json
from pathlib import Path

from mixtura.config import Config
from mixtura.data.subwords import FILE, FileConfig
from mixtura.data.tokenizers import DESCRIPTION, ByteTokenizer, Tokenizer
from mixtura.errors import ConfigError, DataError


class _Description(Config):
    kind: str
    end_of_document: str | None = None


def load_tokenizer(folder: Path) -> Tokenizer:
    """What `Tokenizer.save` wrote there, or the `tokenizer.json` of a Hugging Face folder.

    Raises DataError if there is none, or none that can be used.
    """
    path = folder / DESCRIPTION
    try:
        described = _Description.parse(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        if not (folder / FILE).is_file():
            raise DataError(f"{folder}: no tokenizer; expected {DESCRIPTION} or {FILE}") from None
        described = _Description(kind="file")
    except (OSError, TypeError, json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise DataError(f"{path}: not the description of a tokenizer ({error})") from error
    if described.kind == "bytes":
        return ByteTokenizer()
    if described.kind != "file":
        raise DataError(f"{path}: kind {described.kind!r} is unknown; expected bytes or file")
    end = described.end_of_document
    return FileConfig(kind="file", path=str(folder), end_of_document=end).load()
