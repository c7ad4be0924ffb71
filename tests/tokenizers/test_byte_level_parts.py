"""A tokenizer taken apart gives the parts that it was put together from."""

import json

import pytest

from mixtura.errors import DataError
from mixtura.tokenizers import ByteTokenizer, CheckpointTokenizer, TokenFacts
from mixtura.tokenizers.byte_level import SPLITTINGS, ByteLevelVocabulary, byte_level_tokenizer
from mixtura.tokenizers.byte_level_parts import byte_level_parts
from mixtura.tokenizers.exported_tokenizer import as_checkpoint, letters_of_bytes
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

END = "<|endoftext|>"
FACTS = TokenFacts(ends=(END,))


def built(splitting: str) -> CheckpointTokenizer:
    letters = list(letters_of_bytes())
    vocabulary = ByteLevelVocabulary(
        tokens=[END, *letters, "he", "\u0120t", "\u0120the", "<think>"],
        merges=[("h", "e"), ("\u0120", "t"), ("\u0120t", "he")],
        splitting=SPLITTINGS[splitting],
        special=[END],
        added=["<think>"],
        begin=None,
    )
    return byte_level_tokenizer(vocabulary, FACTS)


def test_tokens_merges_and_marks() -> None:
    parts = byte_level_parts(built("gpt-2"))
    assert len(parts.tokens) == 261
    assert (parts.tokens[0], parts.tokens[-1]) == (END, "<think>")
    assert parts.merges == ("h e", "\u0120 t", "\u0120t he")
    assert (parts.special, parts.added) == (frozenset({0}), frozenset({260}))


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_each_way_of_cutting_is_recognised(splitting: str) -> None:
    # Several names stand for one way; the first of them is found.
    found = SPLITTINGS[byte_level_parts(built(splitting)).splitting]
    way = SPLITTINGS[splitting]
    assert (found.patterns, found.whole_words) == (way.patterns, way.whole_words)


def test_smollm2s_own_parts_are_recognised_too() -> None:
    """Digits, then GPT-2's words by the package's own pattern."""
    backend = Backend.from_str(built("gpt-2").to_json())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert byte_level_parts(CheckpointTokenizer(backend.to_str(), FACTS)).splitting == "smollm"
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert byte_level_parts(CheckpointTokenizer(backend.to_str(), FACTS)).splitting == "gpt-2"


def test_bytes_alone_have_no_merges() -> None:
    parts = byte_level_parts(as_checkpoint(ByteTokenizer()))
    assert (len(parts.tokens), parts.merges) == (257, ())


def test_a_number_that_stands_for_nothing_is_told() -> None:
    tree = json.loads(built("gpt-2").to_json())
    tree["model"]["vocab"]["zz"] = 263
    parts = byte_level_parts(CheckpointTokenizer(json.dumps(tree), FACTS))
    assert parts.tokens[260:] == ("<think>", None, None, "zz")


def test_another_way_of_cutting_is_refused() -> None:
    backend = Backend.from_str(built("gpt-2").to_json())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(DataError, match=r"none of the ways that have a name \(smollm, llama-bpe"):
        byte_level_parts(CheckpointTokenizer(backend.to_str(), FACTS))


def test_a_tokenizer_that_falls_back_to_bytes_is_refused() -> None:
    tokens = [END, *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True)
    backend = Backend(model)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    with pytest.raises(DataError, match="of the kind BPE that falls back to bytes, and not byte-"):
        byte_level_parts(CheckpointTokenizer(backend.to_str(), FACTS))
