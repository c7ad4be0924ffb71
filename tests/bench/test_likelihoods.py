"""Log probabilities from the engine's slots are those of each text read by itself.

S positions, V vocabulary.
"""

import pytest
import torch

from mixtura.bench.likelihoods import Continued, Likelihoods
from mixtura.errors import ConfigError
from mixtura.models import Decoder, DecoderConfig

TINY = {
    "layers": 2,
    "width": 32,
    "vocabulary": 64,
    "context": 24,
    "attention": {"heads": 2, "kv_heads": 1, "head_dim": 16},
    "moe": {"num_experts": 4, "top_k": 2, "expert_width": 16},
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(3)
    return DecoderConfig.parse(TINY).build().eval()


def alone(decoder: Decoder, request: Continued) -> tuple[float, bool]:
    """By one plain forward pass."""
    tokens_S = torch.tensor([*request.context, *request.continuation])
    with torch.inference_mode():
        logits_SV = decoder(tokens_S[None, :-1]).logits_BSV[0].float()
    after = len(request.continuation)
    if not after:
        return 0.0, True
    own_SV = logits_SV[-after:].log_softmax(-1)
    expected_S = tokens_S[-after:]
    nats = float(own_SV.gather(1, expected_S[:, None]).double().sum())
    return nats, bool((own_SV.argmax(-1) == expected_S).all())


def requests() -> list[Continued]:
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(64, (count,), generator=draw).tolist())

    shared, longer = tokens(6), tokens(9)
    found = [Continued(shared, tokens(count)) for count in (1, 1, 4, 7)]
    # One context is the beginning of another, one is asked about twice, and one is by itself.
    found += [Continued((*shared, *longer), tokens(count)) for count in (1, 3)]
    found += [found[2], Continued(tokens(1), tokens(5)), Continued(shared, ())]
    return found


@pytest.mark.parametrize("together", [1, 2, 8])
def test_slots_give_what_each_text_gives_alone(decoder: Decoder, together: int) -> None:
    asked, told = requests(), []
    found = Likelihoods(decoder, together).of(asked, lambda done, total: told.append((done, total)))
    for one, request in zip(found, asked, strict=True):
        nats, greedy = alone(decoder, request)
        assert one.nats == pytest.approx(nats, abs=1e-5)
        assert one.greedy == greedy
    # One of the nine has no tokens, and is not read.
    assert told[-1] == (8, 9)


def test_the_likeliest_tokens_are_greedy(decoder: Decoder) -> None:
    tokens = [5, 6, 7]
    for _ in range(4):
        with torch.inference_mode():
            logits_BSV = decoder(torch.tensor([tokens])).logits_BSV
        tokens.append(int(logits_BSV[0, -1].argmax()))
    right = Continued(tuple(tokens[:3]), tuple(tokens[3:]))
    wrong = Continued(right.context, (*right.continuation[:-1], (right.continuation[-1] + 1) % 64))
    found = Likelihoods(decoder).of([right, wrong])
    assert [one.greedy for one in found] == [True, False]
    assert found[0].nats > found[1].nats


def test_what_exceeds_the_context_is_left_out_in_front(decoder: Decoder) -> None:
    # 24 tokens are read, so that with a continuation of 5 the last 20 of the context remain.
    context, after = tuple(range(40)), (1, 2, 3, 4, 5)
    (found,) = Likelihoods(decoder).of([Continued(context, after)])
    nats, _ = alone(decoder, Continued(context[-20:], after))
    assert found.nats == pytest.approx(nats, abs=1e-5)
    with pytest.raises(ConfigError, match=r"a continuation of 25 tokens .* of the model's 24"):
        Likelihoods(decoder).of([Continued((1,), (2,) * 25)])


def test_a_router_that_looks_around_reads_each_text_by_itself() -> None:
    torch.manual_seed(4)
    moe = {**TINY["moe"], "router": {"kind": "expert_choice", "accept_leak": True}}
    decoder = DecoderConfig.parse({**TINY, "moe": moe}).build().eval()
    asked = requests()[:-1]
    found = Likelihoods(decoder).of(asked)
    for one, request in zip(found, asked, strict=True):
        assert one.nats == pytest.approx(alone(decoder, request)[0], abs=1e-5)
