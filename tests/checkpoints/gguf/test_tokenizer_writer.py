"""A tokenizer into metadata, and out again as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.checkpoints.family_source import FamilySource
from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer
from mixtura.checkpoints.gguf.file_writer import write_gguf
from mixtura.checkpoints.gguf.tokenizer_writer import tokenizer_keys
from mixtura.tokenizers import (
    ByteTokenizer,
    CheckpointTokenizer,
    SubwordTokenizer,
    TokenFacts,
    Tokenizer,
)
from mixtura.tokenizers.byte_level import SPLITTINGS, ByteLevelVocabulary, byte_level_tokenizer
from mixtura.tokenizers.exported_tokenizer import as_checkpoint, letters_of_bytes

Tiny = Callable[[str], FamilySource]
TEXT = "Don't the cat: 1234 Ünï 木 🙂\n\n  <think> <|im_end|>"
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eom|>"]


def chatty(begins: bool = False) -> CheckpointTokenizer:
    vocabulary = ByteLevelVocabulary(
        tokens=[*MARKS, *letters_of_bytes(), "he", "\u0120t", "\u0120the", "<think>"],
        merges=[("h", "e"), ("\u0120", "t"), ("\u0120t", "he")],
        splitting=SPLITTINGS["qwen2"],
        special=MARKS,
        added=["<think>"],
        begin=MARKS[1] if begins else None,
    )
    facts = TokenFacts(
        ends=(MARKS[2], MARKS[3]),
        names={"bos_token": MARKS[1], "eos_token": MARKS[2], "pad_token": MARKS[0]},
        chat_template="{{ messages[0].content }}",
    )
    return byte_level_tokenizer(vocabulary, facts)


def through_a_file(tokenizer: Tokenizer, tiny: Tiny, tmp_path: Path) -> CheckpointTokenizer:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny("llama"), tokenizer, path, name="tiny")
    return gguf_tokenizer(GGUFSource(path).metadata)


def test_what_is_stated() -> None:
    keys = tokenizer_keys(chatty(), 266)
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "qwen2"
    # Four marks, 256 bytes, three merged, one added, and two more that the model has.
    assert keys["tokenizer.ggml.token_type"] == [3] * 4 + [1] * 259 + [4] + [5] * 2
    assert keys["tokenizer.ggml.tokens"][-3:] == ["<think>", "[PAD264]", "[PAD265]"]
    assert keys["tokenizer.ggml.merges"] == ["h e", "\u0120 t", "\u0120t he"]
    named = {
        key.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): token
        for key, token in keys.items()
        if key.endswith("_token_id")
    }
    # Of the ends beside eos the first is called eot and the second eom.
    assert named == {"bos": 1, "eos": 2, "padding": 0, "eot": 0, "eom": 3}
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert tokenizer_keys(chatty(begins=True), 266)["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.chat_template"] == "{{ messages[0].content }}"


def test_a_name_without_a_token_is_left_out() -> None:
    whole = chatty()
    names = {**whole.facts.names, "pad_token": "<none>", "unk_token": "<none>"}
    facts = whole.facts.model_copy(update={"names": names})
    keys = tokenizer_keys(CheckpointTokenizer(whole.to_json(), facts), 266)
    assert keys["tokenizer.ggml.eos_token_id"] == 2
    assert not {f"tokenizer.ggml.{part}_token_id" for part in ("padding", "unknown")} & set(keys)


@pytest.mark.parametrize("begins", [False, True])
def test_it_is_read_as_it_was(begins: bool, tiny: Tiny, tmp_path: Path) -> None:
    before = chatty(begins)
    after = through_a_file(before, tiny, tmp_path)
    assert after.encode(TEXT) == before.encode(TEXT)
    assert after.encode_with_marks(TEXT) == before.encode_with_marks(TEXT)
    assert after.decode(before.encode(TEXT)) == TEXT
    assert (after.begin, after.ends) == (before.begin, before.ends)
    assert after.end_of_document == before.end_of_document
    assert after.chat_template == before.chat_template
    assert after.facts.names == before.facts.names


def test_ours_are_read_as_they_were(tiny: Tiny, bpe: SubwordTokenizer, tmp_path: Path) -> None:
    after = through_a_file(bpe, tiny, tmp_path)
    assert after.encode(TEXT) == bpe.encode(TEXT)
    assert (after.begin, after.ends) == ((), bpe.ends)
    plain = ByteTokenizer()
    after = through_a_file(plain, tiny, tmp_path)
    assert after.encode(TEXT) == as_checkpoint(plain).encode(TEXT)
    assert after.decode(plain.encode(TEXT)) == TEXT
    assert after.ends == plain.ends
