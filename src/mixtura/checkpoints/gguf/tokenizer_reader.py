"""Reads the tokenizer from the metadata of a GGUF file."""

from collections.abc import Callable, Mapping

from mixtura.checkpoints.gguf.metadata import Metadata
from mixtura.errors import DataError
from mixtura.tokenizers.byte_level import ByteLevelVocabulary, byte_level_tokenizer, splitting_of
from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer, Spelling, TokenFacts
from mixtura.tokenizers.piece_text import SPACE
from mixtura.tokenizers.pieces import PieceKind, Pieces
from mixtura.tokenizers.sentencepiece_tokenizer import sentencepiece_tokenizer

# The tokens that end an answer: eos ends a text, eot a turn, and eom a message to a tool.
_ENDS = ("eos", "eot", "eom")
_HF_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def gguf_tokenizer(metadata: Metadata) -> CheckpointTokenizer:
    """Build the tokenizer that the metadata describes.

    Raises CheckpointError if the tokenizer is missing, damaged or of a kind that is not supported.
    """
    model = metadata.text("tokenizer.ggml.model")
    if model not in _READERS:
        raise metadata.error(
            "tokenizer.ggml.model",
            f"{model!r}, expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece's BPE); give "
            "the model's Hugging Face folder, whose tokenizer.json is read",
        )
    tokens = metadata.texts("tokenizer.ggml.tokens")
    try:
        tokenizer = _READERS[model](metadata, tokens)
    except DataError as error:
        raise metadata.error("tokenizer.ggml.tokens", f"not usable: {error}") from error
    tokenizer.template_origin = metadata.place("tokenizer.chat_template")
    return tokenizer


def _byte_level(metadata: Metadata, tokens: list[str]) -> CheckpointTokenizer:
    named = _named(metadata, tokens)
    try:
        splitting = splitting_of(metadata.text("tokenizer.ggml.pre", "default"))
    except DataError as error:
        raise metadata.error("tokenizer.ggml.pre", str(error)) from error
    begin = _begin(metadata, named, usual=splitting.begins and "bos" in named)
    kinds = _kinds(metadata, tokens) if "tokenizer.ggml.token_type" in metadata else []
    vocabulary = ByteLevelVocabulary(
        tokens=tokens,
        merges=_merges(metadata),
        splitting=splitting,
        special=_of_kind(tokens, kinds, {PieceKind.UNKNOWN, PieceKind.CONTROL}),
        added=_of_kind(tokens, kinds, {PieceKind.USER_DEFINED}),
        begin=begin,
    )
    return byte_level_tokenizer(vocabulary, _facts(metadata, named))


def _scored_pieces(metadata: Metadata, tokens: list[str]) -> CheckpointTokenizer:
    """Build a tokenizer of SentencePiece's BPE.

    As in llama.cpp, a space is put before the text and after every added token, unless
    `add_space_prefix` is false.
    """
    kinds = _kinds(metadata, tokens)
    named = {**_usual_names(tokens, kinds), **_named(metadata, tokens)}
    pieces = Pieces(
        "bpe",
        [_spelt(token, kind) for token, kind in zip(tokens, kinds, strict=True)],
        metadata.numbers("tokenizer.ggml.scores"),
        kinds,
        byte_fallback=PieceKind.BYTE in kinds,
    )
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    facts = _facts(metadata, named, Spelling(prefix=prefix, prefix_after="added"))
    begin = _begin(metadata, named, usual="bos" in named)
    return sentencepiece_tokenizer(pieces, facts, begin=begin)


_READERS: Mapping[str, Callable[[Metadata, list[str]], CheckpointTokenizer]] = {
    "gpt2": _byte_level,
    "llama": _scored_pieces,
}


def _begin(metadata: Metadata, named: Mapping[str, str], usual: bool) -> str | None:
    """The token to put before every text, or None; `usual` is the default of `add_bos_token`."""
    if not metadata.flag("tokenizer.ggml.add_bos_token", usual):
        return None
    if "bos" not in named:
        raise metadata.error("tokenizer.ggml.add_bos_token", "true, but no bos_token_id says which")
    return named["bos"]


def _facts(
    metadata: Metadata, named: Mapping[str, str], spelling: Spelling | None = None
) -> TokenFacts:
    has_template = "tokenizer.chat_template" in metadata
    return TokenFacts(
        ends=tuple(named[name] for name in _ENDS if name in named),
        names={hf: named[name] for name, hf in _HF_NAMES.items() if name in named},
        chat_template=metadata.text("tokenizer.chat_template") if has_template else None,
        spelling=spelling,
    )


def _usual_names(tokens: list[str], kinds: list[int]) -> dict[str, str]:
    """Map llama.cpp's default roles to tokens: token 0 is unknown, token 1 is bos, token 2 is eos.

    A token that is not special gets no role.
    """
    marks = {PieceKind.UNKNOWN, PieceKind.CONTROL}
    usual = enumerate(("unknown", "bos", "eos"))
    return {name: tokens[at] for at, name in usual if at < len(tokens) and kinds[at] in marks}


def _spelt(token: str, kind: int) -> str:
    """Spell a token as SentencePiece does, with the character SPACE for a space.

    GGUF files spell only user-defined tokens with plain spaces.
    """
    return token.replace(" ", SPACE) if kind == PieceKind.USER_DEFINED else token


def _named(metadata: Metadata, tokens: list[str]) -> dict[str, str]:
    """Map each role that the file states, such as "bos", to its token."""
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


def _kinds(metadata: Metadata, tokens: list[str]) -> list[int]:
    kinds = metadata.whole_numbers("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise metadata.error(
            "tokenizer.ggml.token_type",
            f"of {len(kinds)} tokens, expected {len(tokens)}, as tokenizer.ggml.tokens has",
        )
    return kinds


def _of_kind(tokens: list[str], of_token: list[int], kinds: set[PieceKind]) -> list[str]:
    # If the file states no kinds, `of_token` is empty and no token is special.
    return [token for token, kind in zip(tokens, of_token, strict=False) if kind in kinds]
