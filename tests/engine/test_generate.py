"""Generation: the stream says all, a seed is a text, and every end has its reason."""

import itertools
from collections.abc import Callable

import pytest
import torch

from mixtura.engine.context import Context
from mixtura.engine.generate import Writer, generate
from mixtura.engine.many_prompts import ManyPrompts, Request
from mixtura.engine.sampling import Sampling
from mixtura.engine.stop_text import StopText
from mixtura.errors import ConfigError, NonFiniteError
from mixtura.models import Decoder
from mixtura.moe import moe_layers
from mixtura.tokenizers.tokenizer import ByteTokenizer

GREEDY = Sampling(temperature=0)
TOKENIZER = ByteTokenizer()


def repeating(model: Decoder, text: bytes, end: bool = False) -> Decoder:
    """Rig it to say `text` over and over: each position's token follows from the one before.

    Attention and FFN write nothing; embeddings and head are unit vectors. `end`: once, then 256.
    """
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.zero_()
        assert model.embedding is not None
        embedding_VD = model.embedding.get_parameter("weight").zero_()
        model.head.weight.zero_()
        following = [*text[1:], 256 if end else text[0]]
        for place, (now, then) in enumerate(zip(text, following, strict=True)):
            embedding_VD[now, place] = 1
            model.head.weight[then, place] = 1
    return model


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_tokens_are_those_of_a_plain_loop(build: Callable[[str], Decoder], name: str) -> None:
    model = build(name).eval()
    tokens = TOKENIZER.encode("import ")
    for _ in range(20):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits_BSV[0, -1].argmax()))
    stream = generate(model, TOKENIZER, "import ", GREEDY, 20)
    text = "".join(stream)
    assert [*TOKENIZER.encode("import "), *stream.result.tokens] == tokens
    assert text == stream.result.text == TOKENIZER.decode(tokens[7:])
    assert stream.result.prompt_tokens == 7


def test_a_seed_is_a_text(build: Callable[[str], Decoder]) -> None:
    def text(seed: int) -> str:
        return "".join(generate(build("moe"), TOKENIZER, "a", Sampling(seed=seed), 30))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_text_comes_as_soon_as_it_is_complete(build: Callable[[str], Decoder]) -> None:
    # "é" is two bytes: its first one shows nothing.
    model = repeating(build("moe"), "aéb".encode())
    stream = generate(model, TOKENIZER, "b", GREEDY, 5)
    assert list(stream) == ["a", "é", "b", "a"]
    assert list(stream.result.tokens) == list("aéba".encode())


def test_half_a_character_at_the_end_shows_as_one_replacement(
    build: Callable[[str], Decoder],
) -> None:
    stream = generate(repeating(build("moe"), "aé".encode()), TOKENIZER, "a", GREEDY, 1)
    assert list(stream) == ["\ufffd"] == [TOKENIZER.decode(stream.result.tokens)]


@pytest.mark.parametrize(
    ("end", "max_tokens", "text", "finish"),
    [
        # The prompt "a" is the first of three letters; then the document ends.
        (True, 99, "bc", "end"),
        (True, 2, "bc", "max_tokens"),
        (False, 4, "bcab", "max_tokens"),
        # One token of prompt and 47 of answer fill the context of 48; one more needs no room.
        (False, 99, "bca" * 16, "length"),
    ],
)
def test_each_end_has_its_reason(
    build: Callable[[str], Decoder], end: bool, max_tokens: int, text: str, finish: str
) -> None:
    model = repeating(build("dense"), b"abc", end)
    stream = generate(model, TOKENIZER, "a", GREEDY, max_tokens)
    assert "".join(stream) == text
    assert stream.result.finish == finish
    # An end of a document is no part of the answer.
    assert stream.result.tokens == tuple(text.encode())


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(build: Callable[[str], Decoder]) -> None:
    writer = Writer(repeating(build("moe"), b"abcd"), TOKENIZER, GREEDY)
    stream = writer.write(list(b"a"), 20, StopText(["da"]))
    assert ("".join(stream), stream.result.finish) == ("bc", "stop")


def test_who_leaves_early_interrupts(build: Callable[[str], Decoder]) -> None:
    stream = generate(repeating(build("moe"), b"abc"), TOKENIZER, "a", GREEDY, 20)
    assert list(itertools.islice(stream, 2)) == ["b", "c"]
    assert (stream.result.text, stream.result.finish) == ("bc", "interrupted")


def test_a_writer_goes_on_after_an_interruption(build: Callable[[str], Decoder]) -> None:
    writer = Writer(build("moe"), TOKENIZER, GREEDY)
    next(writer.write(list(b"import os"), 9))
    again = writer.write(list(b"import sys"), 9)
    fresh = generate(build("moe"), TOKENIZER, "import sys", GREEDY, 9)
    assert "".join(again) == "".join(fresh)


def test_an_empty_prompt_begins_a_document(build: Callable[[str], Decoder]) -> None:
    stream = generate(build("moe"), TOKENIZER, "", GREEDY, 1)
    list(stream)
    expected_V = Context(build("moe")).become([TOKENIZER.end_of_document])
    assert stream.result.tokens == (int(expected_V.argmax()),)
    assert stream.result.prompt_tokens == 1


def test_a_prompt_that_fills_the_context_gets_one_token(build: Callable[[str], Decoder]) -> None:
    stream = generate(repeating(build("moe"), b"abc"), TOKENIZER, "abc" * 16, GREEDY, 20)
    assert ("".join(stream), stream.result.finish) == ("a", "length")


@pytest.mark.parametrize(
    ("context", "written", "finish"),
    [
        # As much as is needed, which is 3 + 5; or six positions: three of the answer, and a token
        # that needs none.
        (None, 5, "max_tokens"),
        (6, 4, "length"),
    ],
)
def test_a_context_of_ones_own(
    build: Callable[[str], Decoder], context: int | None, written: int, finish: str
) -> None:
    model = repeating(build("moe"), b"abc")
    stream = generate(model, TOKENIZER, "abc", GREEDY, 5, context)
    assert "".join(stream) == "abcab"[:written]
    assert stream.result.finish == finish


def test_a_text_through_an_int8_cache(build: Callable[[str], Decoder]) -> None:
    model = repeating(build("moe"), b"abc")
    assert "".join(generate(model, TOKENIZER, "a", GREEDY, 7, kv="int8")) == "bcabcab"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "said"),
    [
        ("x" * 49, 5, "prompt of 49 tokens exceeds the model's context of 48; shorten it"),
        ("x", 0, "max_tokens=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    build: Callable[[str], Decoder], prompt: str, max_tokens: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        generate(build("moe"), TOKENIZER, prompt, GREEDY, max_tokens)


def test_broken_weights_are_refused(build: Callable[[str], Decoder]) -> None:
    model = build("dense")
    with torch.no_grad():
        model.head.weight[3] = torch.nan
    with pytest.raises(NonFiniteError):
        next(generate(model, TOKENIZER, "a", GREEDY, 5))


def test_tokens_without_a_text_are_never_chosen(build: Callable[[str], Decoder]) -> None:
    """Of a padded model: the likeliest after `a` is token 122, and the tokenizer has 100."""
    tokenizer = ByteTokenizer()
    tokenizer.vocabulary = 100
    model = repeating(build("moe"), b"az")
    stream = generate(model, tokenizer, "a", GREEDY, 3, logprobs=100)
    list(stream)
    many = ManyPrompts(model, tokenizer, [Request("a", GREEDY, 3, logprobs=100)] * 2, 2)
    for result in [stream.result, *(one.result for one in many.run())]:
        assert result.logprobs is not None
        assert [len(place.top) for place in result.logprobs] == [100] * 3
        assert max(likely.token for place in result.logprobs for likely in place.top) == 99
        assert max(result.tokens) < 100


def test_nothing_is_left_behind_in_a_model_in_training(build: Callable[[str], Decoder]) -> None:
    """No gradients, no counts of load: a sample in mid-training changes nothing."""
    model = build("moe")
    list(generate(model, TOKENIZER, "a", Sampling(), 5))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(layer.balancer.step_load_E is None for layer in moe_layers(model))


def test_time_is_counted(build: Callable[[str], Decoder]) -> None:
    stream = generate(repeating(build("moe"), b"abc"), TOKENIZER, "a", GREEDY, 5)
    list(stream)
    result = stream.result
    assert result.prefill_seconds > 0
    # Five tokens, of which the first came with the prefill.
    assert result.tokens_per_second == pytest.approx(4 / result.decode_seconds)
    assert result.seconds == result.prefill_seconds + result.decode_seconds
