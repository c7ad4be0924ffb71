"""What is added to logits and taken off them, by hand and beside transformers'. V vocabulary."""

import math

import pytest
import torch
from torch import Tensor

from mixtura.engine.logprobs import logprobs_of
from mixtura.engine.next_token import TokenSampler, next_tokens
from mixtura.engine.penalties import penalised, penalises
from mixtura.engine.sampling import Sampling, probabilities
from mixtura.errors import ConfigError

LOGITS_V = torch.tensor([2.0, -1.0, 0.5, 3.0])


def test_the_repetition_penalty_lowers_what_prompt_and_answer_hold() -> None:
    # Token 0 of the prompt: 2 / 2. Token 1 of the answer, below 0: -1 * 2. Each once.
    changed_V = penalised(LOGITS_V, Sampling(repetition_penalty=2), [0, 0], [1])
    assert changed_V.tolist() == [1.0, -2.0, 0.5, 3.0]


def test_frequency_and_presence_count_the_answer_alone() -> None:
    # Token 3 came twice: 3 - 2 * 0.5 - 0.25. Token 1 once: -1 - 0.5 - 0.25. The prompt's 0: as is.
    way = Sampling(frequency_penalty=0.5, presence_penalty=0.25)
    assert penalised(LOGITS_V, way, [0], [3, 1, 3]).tolist() == [2.0, -1.75, 0.5, 1.75]


def test_a_bias_comes_first_then_repetition_then_counts() -> None:
    # Token 1: -1 + 3 = 2, above 0, so halved to 1; then 1 - 0.5.
    way = Sampling(logit_bias={1: 3.0}, repetition_penalty=2, presence_penalty=0.5)
    assert penalised(LOGITS_V, way, [], [1]).tolist() == [2.0, 0.5, 0.5, 3.0]


def test_a_token_that_is_ruled_out_stays_so() -> None:
    logits_V = torch.tensor([-math.inf, 1.0])
    way = Sampling(logit_bias={0: 100}, repetition_penalty=0.5, frequency_penalty=-2)
    assert penalised(logits_V, way, [0], [0, 0])[0] == -math.inf


@pytest.mark.parametrize(
    "way",
    [
        Sampling(temperature=0.7, top_k=9, top_p=0.9, min_p=0.1, repetition_penalty=1.3),
        Sampling(temperature=1.5, min_p=0.05, logit_bias={3: 2.5, 11: -4.0}),
        Sampling(temperature=2.0, top_p=0.8, repetition_penalty=0.8, logit_bias={0: -100}),
        Sampling(temperature=0.9, top_k=5, min_p=0.3),
    ],
)
def test_probabilities_are_what_transformers_processors_leave(way: Sampling) -> None:
    theirs = pytest.importorskip(
        "transformers.generation.logits_process", reason="the extra `hf` brings it"
    )
    noise = torch.Generator().manual_seed(0)
    prompt, answer = [3, 4, 4, 7], [11, 3]
    for _ in range(20):
        logits_V = torch.randn(40, generator=noise) * 3
        processors = [
            theirs.SequenceBiasLogitsProcessor([[[t], b] for t, b in way.logit_bias.items()])
            if way.logit_bias
            else None,
            theirs.RepetitionPenaltyLogitsProcessor(penalty=float(way.repetition_penalty)),
            theirs.TemperatureLogitsWarper(way.temperature),
            theirs.TopKLogitsWarper(way.top_k) if way.top_k else None,
            theirs.TopPLogitsWarper(way.top_p) if way.top_p < 1 else None,
            theirs.MinPLogitsWarper(way.min_p) if way.min_p else None,
        ]
        scores_1V = logits_V[None].clone()
        for processor in filter(None, processors):
            scores_1V = processor(torch.tensor([prompt + answer]), scores_1V)
        ours_V = probabilities(penalised(logits_V, way, prompt, answer), way)
        torch.testing.assert_close(ours_V, scores_1V[0].softmax(-1).double(), atol=1e-6, rtol=1e-5)


def test_min_p_keeps_a_share_of_the_likeliest() -> None:
    # 1/2, 1/4, 1/8, 1/8: 0.24 of 1/2 is less than 1/8; 0.3 of it leaves 1/2 and 1/4.
    logits_V = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]).log()
    for min_p, kept in ((0.24, [1 / 2, 1 / 4, 1 / 8, 1 / 8]), (0.3, [2 / 3, 1 / 3, 0, 0])):
        found = probabilities(logits_V, Sampling(temperature=1, min_p=min_p))
        assert found.tolist() == pytest.approx(kept)


FIELDS = {
    "temperature": 0.5,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 1.0,
    "repetition_penalty": 90.0,
    "frequency_penalty": 2.0,
    "presence_penalty": 2.0,
    "logit_bias": {5: 100.0},
    "seed": 8,
}


def test_every_field_of_sampling_is_tried_below() -> None:
    assert FIELDS.keys() == Sampling.model_fields.keys()


@pytest.mark.parametrize("field", FIELDS)
def test_no_way_to_draw_passes_over_an_option(field: str) -> None:
    """Sixty draws differ from those without it, alone and among others that draw at once."""
    noise = torch.Generator().manual_seed(0)
    rows = [torch.randn(40, generator=noise) for _ in range(60)]
    plain = drawn(rows, Sampling(seed=7))
    changed = Sampling.parse({"seed": 7, field: FIELDS[field]})
    assert drawn(rows, changed) != plain
    assert drawn(rows, changed, among=3) == drawn(rows, changed)


def drawn(rows: list[Tensor], way: Sampling, among: int = 0) -> list[int]:
    """What `way` draws from each of the rows in turn, with others beside it that draw at once."""
    answer: list[int] = []
    own = TokenSampler(way, [1, 2, 3], answer)
    others = [TokenSampler(Sampling(seed=n)) for n in range(among)]
    for logits_V in rows:
        token, *_ = next_tokens(torch.stack([logits_V] * (1 + among)), [own, *others])
        answer.append(token)
    return answer


def test_a_greedy_choice_is_penalised_too() -> None:
    # 3 wins, then 3 - 2 = 1 < 2.
    answer: list[int] = []
    sampler = TokenSampler(Sampling(temperature=0, presence_penalty=2), (), answer)
    for _ in range(2):
        answer += next_tokens(LOGITS_V[None], [sampler])
    assert answer == [3, 0]


def test_what_penalises_says_so() -> None:
    found = {name for name in FIELDS if penalises(Sampling.parse({name: FIELDS[name]}))}
    assert found == {
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
    }


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"min_p": 1.5}, "min_p=1.5 must lie in 0..1; 0 keeps every token"),
        ({"min_p": math.nan}, "min_p: Input should be a finite number"),
        ({"repetition_penalty": 0}, "repetition_penalty=0.0 must lie in 0.01..100; 1 is none"),
        ({"frequency_penalty": -3}, "frequency_penalty=-3.0 must lie in -2..2; 0 is none"),
        ({"presence_penalty": math.nan}, "presence_penalty: Input should be a finite"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 is 101.0; expected a token from 0 on"),
        ({"logit_bias": {-1: 1}}, "logit_bias of token -1 is 1.0; expected a token from 0 on"),
    ],
)
def test_a_value_out_of_bounds_names_itself(tree: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Sampling.parse(tree)


def test_a_bias_of_a_token_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"logit_bias of token 9: it must lie in 0\.\.3"):
        Sampling(logit_bias={3: 1, 9: 1}).check_vocabulary(4)


def test_logprobs_are_the_models_own() -> None:
    # Of 1/2, 1/4, 1/8, 0: a logarithm of 0 is left out.
    logits_V = torch.tensor([1 / 4, 1 / 2, 1 / 8, 0]).log()
    found = logprobs_of(logits_V + 5, 2, 4)
    total = 7 / 8
    assert found.logprob == pytest.approx(math.log(1 / 8 / total))
    assert [one.token for one in found.top] == [1, 0, 2]
    assert [one.logprob for one in found.top] == pytest.approx(
        [math.log(share / total) for share in (1 / 2, 1 / 4, 1 / 8)]
    )
