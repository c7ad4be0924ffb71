"""The tokenizer that a GGUF file holds."""

from mixtura.data.byte_level import ByteLevelVocabulary, byte_level_tokenizer, splitting_of
from mixtura.data.checkpoint_tokenizer import CheckpointTokenizer, TokenFacts
from mixtura.errors import DataError
from mixtura.interop.gguf.metadata import Metadata

# Of an answer: eot is the end of a turn, eom that of a message to a tool.
_ENDS = ("eos", "eot", "eom")
_HF_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
# llama.cpp's numbers for what a token is.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def gguf_tokenizer(metadata: Metadata) -> CheckpointTokenizer:
    """Raises CheckpointError for a tokenizer that is missing, damaged, or of a kind not read."""
    model = metadata.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise metadata.error(
            "tokenizer.ggml.model",
            f"{model!r}, expected 'gpt2' (byte-level BPE); give the model's Hugging Face folder, "
            "whose tokenizer.json is read",
        )
    tokens = metadata.texts("tokenizer.ggml.tokens")
    named = _named(metadata, tokens)
    try:
        splitting = splitting_of(metadata.text("tokenizer.ggml.pre", "default"))
    except DataError as error:
        raise metadata.error("tokenizer.ggml.pre", str(error)) from error
    begins = metadata.flag("tokenizer.ggml.add_bos_token", splitting.begins and "bos" in named)
    if begins and "bos" not in named:
        raise metadata.error("tokenizer.ggml.add_bos_token", "true, but no bos_token_id says which")
    vocabulary = ByteLevelVocabulary(
        tokens=tokens,
        merges=_merges(metadata),
        splitting=splitting,
        special=_of_kind(metadata, tokens, {_UNKNOWN, _CONTROL}),
        added=_of_kind(metadata, tokens, {_USER_DEFINED}),
        begin=named["bos"] if begins else None,
    )
    has_template = "tokenizer.chat_template" in metadata
    facts = TokenFacts(
        ends=tuple(named[name] for name in _ENDS if name in named),
        names={hf: named[name] for name, hf in _HF_NAMES.items() if name in named},
        chat_template=metadata.text("tokenizer.chat_template") if has_template else None,
    )
    try:
        return byte_level_tokenizer(vocabulary, facts)
    except DataError as error:
        raise metadata.error("tokenizer.ggml.tokens", f"not usable: {error}") from error


def _named(metadata: Metadata, tokens: list[str]) -> dict[str, str]:
    """Tokens that the file gives a part to, by that part."""
    numbers = {
        name: metadata.token(f"tokenizer.ggml.{name}_token_id", len(tokens))
        for name in (*_HF_NAMES, *_ENDS)
    }
    return {name: tokens[token] for name, token in numbers.items() if token is not None}


def _merges(metadata: Metadata) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for line in metadata.texts("tokenizer.ggml.merges"):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise metadata.error(
                "tokenizer.ggml.merges", f"{line!r} in line {len(merges)}, expected two tokens"
            )
        merges.append((left, right))
    return merges


def _of_kind(metadata: Metadata, tokens: list[str], kinds: set[int]) -> list[str]:
    if "tokenizer.ggml.token_type" not in metadata:
        return []
    of_token = metadata.whole_numbers("tokenizer.ggml.token_type")
    if len(of_token) != len(tokens):
        raise metadata.error(
            "tokenizer.ggml.token_type",
            f"of {len(of_token)} tokens, expected {len(tokens)}, as tokenizer.ggml.tokens has",
        )
    return [token for token, kind in zip(tokens, of_token, strict=True) if kind in kinds]
