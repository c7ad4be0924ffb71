"""Reads the tokenizer of a Hugging Face folder: its vocabulary, and facts from other files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura import regular_files
from mixtura.errors import ConfigError, DataError
from mixtura.json_reader import read_object
from mixtura.tokenizers.checkpoint_tokenizer import (
    HF_CONFIG,
    HF_TEMPLATE,
    CheckpointTokenizer,
    TokenFacts,
)
from mixtura.tokenizers.pieces import AddedPiece, extended
from mixtura.tokenizers.sentencepiece_file import read_sentencepiece
from mixtura.tokenizers.sentencepiece_tokenizer import (
    SentencePieceTokenizer,
    sentencepiece_tokenizer,
)
from mixtura.tokenizers.subwords import FILE, MODEL_FILE, MOST_BYTES

_GENERATION = "generation_config.json"
_MODEL = "config.json"
_ADDED = "added_tokens.json"
_NAMES = "special_tokens_map.json"
BESIDE = (HF_CONFIG, _ADDED, _NAMES)
"""files beside a tokenizer.model that change how text is encoded"""


def hugging_face_tokenizer(folder: Path) -> CheckpointTokenizer:
    """Read the vocabulary from tokenizer.json, or from tokenizer.model if only that file exists.

    The files tokenizer_config.json, special_tokens_map.json and chat_template.jinja are optional.
    The tokens that end an answer are read from generation_config.json, or else from config.json.
    Raises DataError if a file is missing, damaged or not supported.
    """
    if not (folder / FILE).is_file() and (folder / MODEL_FILE).is_file():
        tokenizer: CheckpointTokenizer = sentencepiece_beside(folder / MODEL_FILE)
    else:
        config = _object(folder / HF_CONFIG)
        facts = _facts(folder, config, {}, {"add_bos": config.get("add_bos_token")})
        tokenizer = CheckpointTokenizer(read_text(folder / FILE), facts, str(folder / FILE))
    tokenizer.template_origin = template_origin(folder)
    return tokenizer


def sentencepiece_beside(path: Path, end_of_document: str | None = None) -> SentencePieceTokenizer:
    """Read a tokenizer from a `tokenizer.model`, and facts from the other files of its folder.

    If tokenizer_config.json does not set add_bos_token, every text begins with bos_token, provided
    that this token exists; transformers does the same. Raises DataError as `hugging_face_tokenizer`
    does.
    """
    folder = path.parent
    config = _object(folder / HF_CONFIG)
    file = read_sentencepiece(path)
    stated = config.get("add_prefix_space")
    spelling = {
        "prefix": file.prefix if stated is None else stated,
        # An older config lacks the key `legacy`: its model was trained with a space after special
        # tokens.
        "prefix_after": "nothing" if config.get("legacy") is False else "marks",
        "collapse": file.collapse,
    }
    own = {f"{part}_token": name for part, name in file.names.items()}
    begins = config.get("add_bos_token")
    begins = "bos_token" in {**own, **_names(config)} if begins is None else begins
    further = {"add_bos": begins, "spelling": spelling, "end_of_document": end_of_document}
    facts = _facts(folder, config, own, further)
    try:
        pieces = extended(
            file.pieces, _added_tokens(folder, config), frozenset(facts.names.values())
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    begin = facts.names.get("bos_token") if begins else None
    return sentencepiece_tokenizer(
        pieces, facts, charsmap=file.charsmap, begin=begin, origin=str(path)
    )


def _facts(
    folder: Path, config: Mapping[str, Any], own: Mapping[str, str], further: Mapping[str, Any]
) -> TokenFacts:
    """Collect facts from the folder's files.

    `own` maps the token names that the vocabulary itself states to token texts. A text that the
    folder's files state for the same name takes precedence. `further` has the values of other
    fields of TokenFacts.
    """
    names = {**own, **_names(_object(folder / _NAMES)), **_names(config)}
    ends = _object(folder / _GENERATION).get("eos_token_id")
    if ends is None:
        ends = _object(folder / _MODEL).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if "eos_token" in names:
        ends = [names["eos_token"], *ends]
    tree = {"ends": ends, "names": names, "chat_template": chat_template_of(folder), **further}
    try:
        return TokenFacts.parse(tree, str(folder / HF_CONFIG))
    except ConfigError as error:
        raise DataError(str(error)) from error


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> list[AddedPiece]:
    """Collect the tokens that other files add to those of tokenizer.model.

    Raises DataError for a malformed entry.
    """
    found: list[AddedPiece] = []
    for text, number in _object(folder / _ADDED).items():
        found.append(AddedPiece(_number(number, folder / _ADDED), text, False))
    stated = config.get("added_tokens_decoder") or {}
    if not isinstance(stated, dict):
        raise DataError(f"{folder / HF_CONFIG}: added_tokens_decoder should be an object")
    for number, one in stated.items():
        if not isinstance(one, dict) or not isinstance(one.get("content"), str):
            raise DataError(f"{folder / HF_CONFIG}: added_tokens_decoder.{number} has no content")
        for setting in ("lstrip", "rstrip", "single_word"):
            if one.get(setting):
                raise DataError(
                    f"{folder / HF_CONFIG}: the added token {one['content']!r:.60} has {setting}, "
                    f"which is not supported beside {MODEL_FILE}; give a {FILE}"
                )
        special = bool(one.get("special"))
        found.append(AddedPiece(_number(number, folder / HF_CONFIG), one["content"], special))
    return found


def _number(number: object, path: Path) -> int:
    try:
        return int(str(number))
    except ValueError:
        raise DataError(f"{path}: {number!r:.60} should be the number of an added token") from None


def chat_template_of(folder: Path) -> str | None:
    """Return the template in chat_template.jinja, else that in tokenizer_config.json, else None.

    If tokenizer_config.json has several named templates, the template named "default" is returned.
    Raises DataError for a value that is neither text nor a list of named texts.
    """
    if (folder / HF_TEMPLATE).is_file():
        return read_text(folder / HF_TEMPLATE)
    stated = _object(folder / HF_CONFIG).get("chat_template")
    if stated is None or isinstance(stated, str):
        return stated
    several = _named_templates(stated)
    if several is None:
        raise DataError(
            f"{folder / HF_CONFIG}: chat_template should be text, or a list of objects with a name "
            f"and a template; found {stated!r:.60}"
        )
    return several.get("default")


def template_origin(folder: Path) -> str:
    """Return the first words of an error about the chat template: they name the template's file."""
    own = folder / HF_TEMPLATE
    return f"{own if own.is_file() else folder / HF_CONFIG}: the chat template"


def _named_templates(stated: object) -> dict[str, str] | None:
    """Map names to templates, given a list of named templates or a mapping.

    Returns None for any other value.
    """
    if isinstance(stated, list):
        if not all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in stated):
            return None
        pairs = [(one["name"], one["template"]) for one in stated]
    elif isinstance(stated, dict):
        pairs = list(stated.items())
    else:
        return None
    texts = all(isinstance(name, str) and isinstance(text, str) for name, text in pairs)
    return dict(pairs) if texts else None


def read_text(path: Path) -> str:
    """The content of a text file. Raises DataError if the file is missing or is not UTF-8 text."""
    try:
        return regular_files.read_text(path, DataError, MOST_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the folder needs it") from None


def _object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Returns an empty object if the file is missing."""
    try:
        return read_object(path, DataError)
    except FileNotFoundError:
        return {}


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """Map the names of tokens in `config`, such as eos_token, to the tokens' texts.

    A config states a token as its text, or as an object that has the text in "content".
    """
    found = {key: value for key, value in config.items() if key.endswith("_token")}
    texts = {
        key: value["content"] if isinstance(value, dict) and "content" in value else value
        for key, value in found.items()
    }
    return {key: value for key, value in texts.items() if isinstance(value, str)}
