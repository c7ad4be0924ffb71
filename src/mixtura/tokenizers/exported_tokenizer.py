"""Converts each of Mixtura's tokenizers to a form that transformers' AutoTokenizer reads."""

from collections.abc import Iterator

from mixtura.tokenizers.byte_level import SPLITTINGS, ByteLevelVocabulary, byte_level_tokenizer
from mixtura.tokenizers.checkpoint_tokenizer import CheckpointTokenizer, TokenFacts
from mixtura.tokenizers.subwords import END_OF_DOCUMENT, SubwordTokenizer
from mixtura.tokenizers.tokenizer import ByteTokenizer, Tokenizer

# GPT-2 writes a byte in these ranges as the character with the same number. It writes the other
# bytes, in their order, as the characters from number 256 on.
_PRINTABLE = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))


def as_checkpoint(tokenizer: Tokenizer) -> CheckpointTokenizer:
    """Return a tokenizer that encodes text to the same tokens, and can save a tokenizer.json."""
    match tokenizer:
        case CheckpointTokenizer():
            return tokenizer
        case ByteTokenizer():
            return _bytes_as_bpe()
        case SubwordTokenizer():
            end = tokenizer.token_text(tokenizer.end_of_document)
            facts = TokenFacts(end_of_document=end, ends=(end,), names={"eos_token": end})
            return CheckpointTokenizer(tokenizer.to_json(), facts)
        case _:
            raise AssertionError(f"{type(tokenizer).__name__} is no tokenizer of Mixtura's")


def _bytes_as_bpe() -> CheckpointTokenizer:
    """Build a byte-level BPE tokenizer without merges, which encodes text as ByteTokenizer does."""
    vocabulary = ByteLevelVocabulary(
        tokens=[*letters_of_bytes(), END_OF_DOCUMENT],
        merges=[],
        splitting=SPLITTINGS["gpt-2"],
        special=[END_OF_DOCUMENT],
        added=[],
        begin=None,
    )
    ends = TokenFacts(ends=(END_OF_DOCUMENT,), names={"eos_token": END_OF_DOCUMENT})
    return byte_level_tokenizer(vocabulary, ends)


def letters_of_bytes() -> Iterator[str]:
    """Yield the character with which GPT-2 writes each byte, for the bytes 0 to 255 in order."""
    spare = 0x100
    for byte in range(0x100):
        if any(byte in kept for kept in _PRINTABLE):
            yield chr(byte)
        else:
            yield chr(spare)
            spare += 1
