"""The tokenizer in a GGUF file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixtura.checkpoints.gguf import GGUFSource, gguf_tokenizer
from mixtura.errors import CheckpointError
from mixtura.tokenizers import CheckpointTokenizer

Write = Callable[..., Path]


def read(path: Path) -> CheckpointTokenizer:
    return gguf_tokenizer(GGUFSource(path).metadata)


def test_tokens_merges_and_marks(write: Write, vocabulary: dict[str, Any]) -> None:
    tokenizer = read(write())
    tokens = vocabulary["tokens"]
    assert tokenizer.vocabulary == len(tokens)
    assert dict(tokenizer.special) == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    # "\u0120the" is a token, as is "the"; a mark in the text is only text.
    assert tokenizer.encode("the the") == [tokens.index("the"), tokens.index("\u0120the")]
    assert not {0, 1, 2} & set(tokenizer.encode("<|im_end|>"))
    assert tokenizer.encode_with_marks("the<|im_end|>") == [tokens.index("the"), 2]
    # The added token is found in any text, and shows; special ones do not show.
    assert tokenizer.encode("the<think>")[-1] == len(tokens) - 1
    assert tokenizer.decode([1, tokens.index("the"), len(tokens) - 1, 2]) == "the<think>"
    text = "Ünï 1234 木 🙂 the\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_begins_and_ends(write: Write) -> None:
    plain = read(write())
    # The file says nothing of a beginning, and SmolLM has none.
    assert plain.begin == ()
    assert (plain.end_of_document, plain.ends) == (0, frozenset({0, 2}))
    begun = read(write(tokenizer={"add_bos_token": True, "eos_token_id": 0, "eot_token_id": 2}))
    assert (begun.begin, begun.ends) == ((1,), frozenset({0, 2}))
    assert begun.encode("the") == plain.encode("the")
    # Llama 3's has one unless the file denies it.
    assert read(write(tokenizer={"pre": "llama-bpe"})).begin == (1,)
    assert read(write(tokenizer={"pre": "llama-bpe", "add_bos_token": False})).begin == ()


def test_the_chat_template_and_the_names_in_it(write: Write) -> None:
    assert read(write()).chat_template is None
    tokenizer = read(write(template="{{ bos_token }}"))
    assert tokenizer.chat_template == "{{ bos_token }}"
    expected = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.facts.names == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": None}, "lacks the key tokenizer.ggml.model"),
        (
            {"model": "t5"},
            "tokenizer.ggml.model is 't5', expected 'gpt2' (byte-level BPE) or 'llama'",
        ),
        ({"model": "llama"}, "lacks the key tokenizer.ggml.scores"),
        ({"pre": "smolm"}, "tokenizer.ggml.pre is pre-tokenizer 'smolm'; the nearest known is"),
        ({"pre": "tekken"}, "'tekken'; expected one of smollm, llama-bpe"),
        ({"merges": None}, "lacks the key tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "merges is 'ab' in line 0, expected two tokens"),
        ({"merges": ["t zz"]}, "the merge 't zz' needs 'zz', which is no token"),
        ({"token_type": [1, 2]}, "tokenizer.ggml.token_type is of 2 tokens, expected"),
        ({"add_bos_token": True, "bos_token_id": None}, "no bos_token_id says which"),
        ({"tokens": ["a", "b", "a"], "token_type": None}, "the token 'a' stands twice"),
    ],
)
def test_what_cannot_be_used_is_named(write: Write, change: dict[str, Any], problem: str) -> None:
    path = write(tokenizer=change, keys={"vocab_size": 3} if "tokens" in change else None)
    metadata = _metadata(path)
    with pytest.raises(CheckpointError) as caught:
        gguf_tokenizer(metadata)
    assert problem in str(caught.value)


def _metadata(path: Path) -> Any:
    """Without the checks of the weights, which a changed vocabulary would not pass."""
    from mixtura.checkpoints.gguf.header import read_header
    from mixtura.checkpoints.gguf.metadata import Metadata

    return Metadata(read_header(path).metadata, path)
