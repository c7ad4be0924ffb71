"""The cache changes nothing but the time, whatever was read before and however it ended.

V vocabulary.
"""

from collections.abc import Callable

import pytest
import torch
from tests.engine.tiny_families import build as tiny
from tests.engine.tiny_families import leaky
from torch import Tensor

from mixtura.engine.cache_plan import KVKind
from mixtura.engine.context import Context
from mixtura.errors import ConfigError
from mixtura.models import Decoder

PROMPT = list(b"def f(x):")


def read_again(model: Decoder, tokens: list[int]) -> Tensor:
    """logits_V after all the tokens, without a cache."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits_BSV[0, -1]


@pytest.mark.parametrize("name", ["dense", "moe", "half_and_half"])
@pytest.mark.parametrize("part", [1, 4, 512])
def test_greedy_decoding_equals_reading_everything_again(
    build: Callable[[str], Decoder], name: str, part: int
) -> None:
    model = build(name).eval()
    context = Context(model, part)
    cached, again = list(PROMPT), list(PROMPT)
    logits_V = context.become(PROMPT)
    for _ in range(context.room):
        again_V = read_again(model, again)
        torch.testing.assert_close(logits_V, again_V, rtol=1e-4, atol=1e-5)
        again.append(int(again_V.argmax()))
        cached.append(int(logits_V.argmax()))
        logits_V = context.read(cached[-1:])
    assert cached == again == context.tokens
    assert len(cached) == 48


def test_generation_is_dropless(build: Callable[[str], Decoder]) -> None:
    """The same weights under capacity 0.25, which would drop three rows of four, and without."""
    dropping, dropless = build("dropping"), build("moe")
    dropless.load_state_dict(dropping.state_dict())
    expected_V = Context(dropless).become(PROMPT)
    assert torch.equal(Context(dropping).become(PROMPT), expected_V)
    # Without a cache, as in training, rows do go missing.
    assert not torch.allclose(read_again(dropping, PROMPT), expected_V)


@pytest.mark.parametrize(
    ("then", "read"),
    [
        (b"def f(x, y):", 5),  # shares "def f(x", so ", y):" is new
        (b"def f(x):", 1),  # the last token again, for its logits
        (b"def", 1),
        (b"class", 5),
        (b"def f(x):\n    return x", 13),
    ],
)
def test_what_texts_share_is_read_once(
    build: Callable[[str], Decoder], then: bytes, read: int
) -> None:
    model = build("moe").eval()
    context = Context(model)
    context.become(PROMPT)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    logits_V = context.become(list(then))
    assert sum(seen) == read
    assert context.tokens == list(then)
    torch.testing.assert_close(logits_V, read_again(model, list(then)), rtol=1e-4, atol=1e-5)


def test_an_interruption_between_layers_leaves_no_trace(build: Callable[[str], Decoder]) -> None:
    model = build("moe").eval()
    expected_V = Context(model).become([*PROMPT, 1, 2])
    context = Context(model)
    context.become([*PROMPT, 1])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # The first layer has the new key by then, the second has not.
    handle = model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        context.read([7])
    handle.remove()
    assert context.tokens == [*PROMPT, 1]
    torch.testing.assert_close(context.read([2]), expected_V)


@pytest.mark.parametrize("then", [[5], [5, 6]])
def test_an_interruption_of_the_second_reading_is_made_good(then: list[int]) -> None:
    # LongRoPE's original context is 16: the 17th token has all keys turned by the long factors.
    model, text = tiny("phimoe"), [(7 * number) % 23 for number in range(16)]
    context = Context(model)
    context.become(text)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # The first layer's keys are turned anew by then, the second's are not.
    handle = model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        context.read([3])
    handle.remove()
    assert context.tokens == text
    torch.testing.assert_close(
        context.read(then, "prefill"), read_again(model, [*text, *then]), rtol=1e-4, atol=1e-5
    )
    # And within the original context, where the first layer's keys are the wrong ones.
    context.become(text)
    handle = model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        context.read([3])
    handle.remove()
    short = text[:9]
    torch.testing.assert_close(
        context.become(short), read_again(model, short), rtol=1e-4, atol=1e-5
    )


def test_a_decoder_in_training_goes_back_to_it(build: Callable[[str], Decoder]) -> None:
    model = build("moe")
    assert model.training
    first_V = Context(model).become(PROMPT)
    assert model.training
    assert torch.equal(Context(model.eval()).become(PROMPT), first_V)
    assert not model.training


def test_past_the_models_context_is_refused(build: Callable[[str], Decoder]) -> None:
    context = Context(build("moe"))
    context.become(list(range(48)))
    assert context.room == 0
    with pytest.raises(ConfigError, match="49 tokens exceeds the model's context of 48"):
        context.read([0])


def test_a_smaller_context_says_so(build: Callable[[str], Decoder]) -> None:
    context = Context(build("moe"), capacity=12)
    context.become(PROMPT)
    assert (context.capacity, context.room) == (12, 3)
    said = "a text of 13 tokens exceeds the context of 12 that was asked for, of the model's 48;"
    with pytest.raises(ConfigError, match=said):
        context.read([1, 2, 3, 4], "prefill")
    with pytest.raises(ConfigError, match=said):
        context.become([*PROMPT, 1, 2, 3, 4])
    # What was read stays.
    assert context.read([1, 2, 3], "prefill").isfinite().all()
    with pytest.raises(ConfigError, match=r"context=49 must lie in 1\.\.48, the model's own"):
        Context(build("moe"), capacity=49)


@pytest.mark.parametrize(("kv", "tolerance"), [("fp32", 1e-4), ("bf16", 0.006), ("int8", 0.01)])
def test_any_kind_of_cache_can_be_asked_for(
    build: Callable[[str], Decoder], kv: KVKind, tolerance: float
) -> None:
    model = build("half_and_half").eval()
    context = Context(model, part=4, kv=kv)
    text = [*PROMPT, 1, 2]
    context.become(PROMPT)
    context.read(text[9:10])
    found_V, expected_V = context.read(text[10:]), read_again(model, text)
    assert (found_V - expected_V).abs().max() < tolerance * expected_V.abs().max()
    # Six tokens are shared.
    other = [*PROMPT[:6], 7, 8]
    found_V, expected_V = context.become(other), read_again(model, other)
    assert (found_V - expected_V).abs().max() < tolerance * expected_V.abs().max()


def test_one_router_that_looks_around_can_still_be_read_alone() -> None:
    assert Context(leaky()).become([1, 2, 3]).isfinite().all()
