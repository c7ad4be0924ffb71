"""A tokenizer as the metadata of a GGUF file: what vocabulary.py reads."""

from typing import Any

from mixtura.data import CheckpointTokenizer, Tokenizer
from mixtura.data.byte_level_parts import ByteLevelParts, byte_level_parts
from mixtura.data.exported_tokenizer import as_checkpoint
from mixtura.errors import CheckpointError

# llama.cpp's numbers for what a token is.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_NAMES = {"bos_token": "bos", "unk_token": "unknown", "pad_token": "padding"}
# Of an answer, beside eos.
_FURTHER_ENDS = ("eot", "eom")


def tokenizer_keys(tokenizer: Tokenizer, vocabulary: int) -> dict[str, Any]:
    """`tokenizer.*`, for a model of this vocabulary.

    Raises DataError for a tokenizer that is no byte-level BPE or cuts words in an unknown way, and
    CheckpointError where the model has fewer tokens.
    """
    own = as_checkpoint(tokenizer)
    parts = byte_level_parts(own)
    if len(parts.tokens) > vocabulary:
        raise CheckpointError(
            f"the tokenizer has {len(parts.tokens)} tokens and the model {vocabulary}; they "
            "belong to different models"
        )
    spare = [None] * (vocabulary - len(parts.tokens))
    tokens = [
        f"[PAD{number}]" if token is None else token
        for number, token in enumerate((*parts.tokens, *spare))
    ]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": parts.splitting,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": _kinds(parts, vocabulary),
        "tokenizer.ggml.merges": list(parts.merges),
        **{f"tokenizer.ggml.{name}_token_id": token for name, token in _ids(own, tokens).items()},
        "tokenizer.ggml.add_bos_token": bool(own.begin),
        "tokenizer.ggml.add_eos_token": False,
    }
    if own.chat_template is not None:
        found["tokenizer.chat_template"] = own.chat_template
    return found


def _kinds(parts: ByteLevelParts, vocabulary: int) -> list[int]:
    def kind(number: int) -> int:
        if number >= len(parts.tokens) or parts.tokens[number] is None:
            return _UNUSED
        if number in parts.special:
            return _CONTROL
        return _USER_DEFINED if number in parts.added else _NORMAL

    return [kind(number) for number in range(vocabulary)]


def _ids(tokenizer: CheckpointTokenizer, tokens: list[str]) -> dict[str, int]:
    """Tokens with a part to play, by that part."""
    number_of = {token: number for number, token in enumerate(tokens)}
    names = tokenizer.facts.names
    found = {part: number_of[names[name]] for name, part in _NAMES.items() if name in names}
    if tokenizer.begin:
        found["bos"] = tokenizer.begin[0]
    named = number_of.get(names["eos_token"]) if "eos_token" in names else None
    end = tokenizer.end_of_document if named is None else named
    further = sorted(tokenizer.ends - {end})
    return {**found, "eos": end, **dict(zip(_FURTHER_ENDS, further, strict=False))}
