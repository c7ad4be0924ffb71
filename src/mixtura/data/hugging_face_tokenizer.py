"""The tokenizer of a Hugging Face folder: tokenizer.json, and what is said of its tokens beside."""

from pathlib import Path
from typing import Any

from mixtura import regular_files
from mixtura.data.checkpoint_tokenizer import (
    HF_CONFIG,
    HF_TEMPLATE,
    CheckpointTokenizer,
    TokenFacts,
)
from mixtura.data.subwords import FILE, MOST_BYTES
from mixtura.errors import ConfigError, DataError
from mixtura.json_reader import read_object

_GENERATION = "generation_config.json"
_MODEL = "config.json"


def hugging_face_tokenizer(folder: Path) -> CheckpointTokenizer:
    """Raises DataError where a file is missing or damaged, or cannot serve.

    All but tokenizer.json may be missing: tokenizer_config.json and chat_template.jinja, and
    generation_config.json or config.json, of which the ends of an answer are taken.
    """
    config = _object(folder / HF_CONFIG)
    names = _names(_object(folder / "special_tokens_map.json")) | _names(config)
    ends = _object(folder / _GENERATION).get("eos_token_id")
    if ends is None:
        ends = _object(folder / _MODEL).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if "eos_token" in names:
        ends = [names["eos_token"], *ends]
    tree = {
        "ends": ends,
        "names": names,
        "add_bos": config.get("add_bos_token"),
        "chat_template": chat_template_of(folder),
    }
    try:
        facts = TokenFacts.parse(tree, str(folder / HF_CONFIG))
    except ConfigError as error:
        raise DataError(str(error)) from error
    return CheckpointTokenizer(read_text(folder / FILE), facts, str(folder / FILE))


def chat_template_of(folder: Path) -> str | None:
    """Of the file of its own, else of tokenizer_config.json; of several the default one."""
    if (folder / HF_TEMPLATE).is_file():
        return read_text(folder / HF_TEMPLATE)
    stated = _object(folder / HF_CONFIG).get("chat_template")
    if stated is None or isinstance(stated, str):
        return stated
    several = {one["name"]: one["template"] for one in stated}
    return several.get("default")


def read_text(path: Path) -> str:
    """Raises DataError."""
    try:
        return regular_files.read_text(path, DataError, MOST_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the folder needs it") from None


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    try:
        return read_object(path, DataError)
    except FileNotFoundError:
        return {}


def _names(config: dict[str, Any]) -> dict[str, str]:
    """Tokens that have a name, such as eos_token; some files have them with their settings."""
    found = {key: value for key, value in config.items() if key.endswith("_token")}
    texts = {
        key: value["content"] if isinstance(value, dict) and "content" in value else value
        for key, value in found.items()
    }
    return {key: value for key, value in texts.items() if isinstance(value, str)}
