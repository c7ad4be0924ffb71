"""Facts and mappings: answers by hand on tiny instances, and as a law on any."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.data import Batch
from mixtura.data.synthetic import (
    HELDOUT_EVERY,
    NO_ANSWER,
    AnswerCounts,
    Composition,
    CompositionConfig,
    Recall,
    RecallConfig,
    answer_counts,
)
from mixtura.errors import ConfigError

Mapping = tuple[int, ...]


def recall(entities: int, relations: int, batch: int, seed: int = 0) -> Recall:
    config = RecallConfig(entities=entities, relations=relations, values=4, batch=batch, seed=seed)
    return Recall(config)


def composition(symbols: int, seed: int = 0, hops: int = 2, batch: int = 8) -> Composition:
    config = CompositionConfig(symbols=symbols, hops=hops, questions=2, batch=batch, seed=seed)
    return Composition(config)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.tokens_BS, other.tokens_BS) and torch.equal(
        one.targets_BS, other.targets_BS
    )


def mappings(batch: Batch, symbols: int) -> list[Mapping]:
    """Read back from each sequence's pairs."""
    found: list[Mapping] = []
    for pairs in batch.tokens_BS[:, :symbols].tolist():
        follows = dict(divmod(pair, symbols) for pair in pairs)
        found.append(tuple(follows[symbol] for symbol in range(symbols)))
    return found


def test_facts_by_hand() -> None:
    # 2 entities, 3 relations, 4 values: tokens 0 and 1, 2 to 4, 5 to 8. The table's order is
    # (0, 2) (0, 3) (0, 4) (1, 2) (1, 3) (1, 4); batches of four leave two for the last.
    first, second = recall(2, 3, batch=4).every_fact()
    assert first.tokens_BS.tolist() == [[0, 2], [0, 3], [0, 4], [1, 2]]
    assert second.tokens_BS.tolist() == [[1, 3], [1, 4]]
    assert (first.targets_BS[:, 0] == NO_ANSWER).all()
    values = [*first.targets_BS[:, 1].tolist(), *second.targets_BS[:, 1].tolist()]
    assert all(5 <= value <= 8 for value in values)
    assert recall(2, 3, batch=4).vocabulary == 9


@given(
    entities=st.integers(1, 5),
    relations=st.integers(1, 5),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
)
@settings(deadline=None)
def test_an_epoch_asks_each_fact_once_and_answers_from_the_table(
    entities: int, relations: int, batch: int, seed: int
) -> None:
    task = recall(entities, relations, batch, seed)
    facts = entities * relations
    table = {
        tuple(question): answer
        for asked in task.every_fact()
        for question, (_, answer) in zip(
            asked.tokens_BS.tolist(), asked.targets_BS.tolist(), strict=True
        )
    }
    assert len(table) == facts
    # `facts` batches are `batch` whole epochs.
    count: Counter[tuple[int, ...]] = Counter()
    for step in range(facts):
        drawn = task.at(step)
        for question, answer in zip(
            drawn.tokens_BS.tolist(), drawn.targets_BS[:, 1].tolist(), strict=True
        ):
            count[tuple(question)] += 1
            assert answer == table[tuple(question)]
    assert count == dict.fromkeys(table, batch)


def test_a_batch_of_facts_depends_on_seed_and_step_alone() -> None:
    task = recall(10, 10, batch=30)
    kept = [task.at(step) for step in range(8)]
    assert all(same(recall(10, 10, batch=30).at(step), kept[step]) for step in reversed(range(8)))
    # Two epochs are two orders, and two seeds are two tables.
    assert not same(recall(10, 10, batch=100).at(0), recall(10, 10, batch=100).at(1))
    (one,), (other,) = (recall(10, 10, batch=100, seed=seed).every_fact() for seed in (0, 1))
    assert torch.equal(one.tokens_BS, other.tokens_BS)
    assert not torch.equal(one.targets_BS, other.targets_BS)


def test_a_walk_by_hand() -> None:
    # Three symbols: pair a -> b is token 3a + b, symbol s is 9 + s, h hops are 12 + h - 1.
    # First sequence: 7 = 2 -> 1, 3 = 1 -> 0, 2 = 0 -> 2. Two hops (13) from 0 (9): 0 -> 2 -> 1,
    # which is 10; drawn twice. Second sequence, the same mapping: one hop (12) from 2 (11) ends at
    # 1 (10), and two hops (13) from 1 (10) go 1 -> 0 -> 2, which is 11.
    task = composition(symbols=3, batch=2)
    batch = task.at(0)
    assert batch.tokens_BS.tolist() == [[7, 3, 2, 13, 9, 13, 9], [2, 7, 3, 12, 11, 13, 10]]
    n = NO_ANSWER
    assert batch.targets_BS.tolist() == [[n, n, n, n, 10, n, 10], [n, n, n, n, 10, n, 11]]
    assert batch.domains_BS.tolist() == [[0, 0, 0, 0, 2, 0, 2], [0, 0, 0, 0, 1, 0, 2]]
    assert (task.vocabulary, task.length) == (14, 7)


@given(
    symbols=st.integers(3, 7),
    data=st.data(),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=40)
def test_every_answer_is_the_walk_that_its_question_names(
    symbols: int, data: st.DataObject, seed: int, step: int
) -> None:
    task = composition(symbols, seed, hops=data.draw(st.integers(1, symbols - 1)))
    for batch in (task.at(step), *task.heldout(1)):
        for row, follows in enumerate(mappings(batch, symbols)):
            for place in range(symbols, task.length, 2):
                hop_token, start_token = batch.tokens_BS[row, place : place + 2].tolist()
                hops = hop_token - symbols**2 - symbols + 1
                start = here = start_token - symbols**2
                for _ in range(hops):
                    here = follows[here]
                assert 1 <= hops <= task.config.hops
                assert here != start
                assert batch.targets_BS[row, place + 1] == symbols**2 + here
                assert batch.domains_BS[row, place + 1] == hops


def test_heldout_mappings_are_never_trained_on() -> None:
    # Five symbols have 4! = 24 cycles; one in 8 is held out: 3, and 21 are left.
    assert HELDOUT_EVERY == 8
    task = composition(symbols=5)
    trained = {mapping for step in range(60) for mapping in mappings(task.at(step), 5)}
    held = {mapping for batch in task.heldout(30) for mapping in mappings(batch, 5)}
    assert (len(trained), len(held)) == (21, 3)
    assert not trained & held


def test_a_batch_of_walks_depends_on_seed_and_step_alone() -> None:
    task = composition(symbols=6)
    kept = [task.at(step) for step in range(4)]
    assert all(same(composition(symbols=6).at(step), kept[step]) for step in reversed(range(4)))
    assert not same(kept[0], kept[1])
    assert not same(kept[0], composition(symbols=6, seed=1).at(0))
    first, again = (list(composition(symbols=6).heldout(2)) for _ in range(2))
    assert all(map(same, first, again))


def test_only_answers_count_in_the_loss() -> None:
    # Even logits over a vocabulary of 14 cost ln 14 = 2.6391 nats for each answer, and logits that
    # are sure and right at answers cost nothing, whatever they say elsewhere.
    batch = composition(symbols=3).at(0)
    even_BSV = torch.zeros(8, 7, 14)
    target_T = batch.targets_BS.flatten()
    assert F.cross_entropy(even_BSV.flatten(0, 1), target_T).item() == pytest.approx(
        2.6391, abs=1e-4
    )
    sure_BSV = 100 * F.one_hot(batch.targets_BS.clamp(min=0), 14).float()
    assert F.cross_entropy(sure_BSV.flatten(0, 1), target_T).item() == 0


def test_answer_counts_by_hand() -> None:
    # Answers due: 10, 10, 10 and 11, of 2, 2, 1 and 2 hops (see the walk above). Who always says 10
    # is right at one of one, and at two of three.
    batch = composition(symbols=3, batch=2).at(0)
    always_ten_BSV = F.one_hot(torch.full((2, 7), 10), 14).float()
    assert answer_counts(always_ten_BSV, batch) == {1: AnswerCounts(1, 1), 2: AnswerCounts(2, 3)}


def test_a_config_names_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"hops=4 must lie in 1\.\.symbols-1=3"):
        CompositionConfig.parse({"symbols": 4, "hops": 4, "batch": 1})
    with pytest.raises(ConfigError, match="symbols"):
        CompositionConfig.parse({"symbols": 10, "batch": 1})
    with pytest.raises(ConfigError, match="values"):
        RecallConfig.parse({"entities": 3, "relations": 3, "values": 1, "batch": 1})
