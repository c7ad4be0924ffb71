"""Several ranks, as threads of this process, beside one that does it all."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from mixtura.data import Batches, Corpus
from mixtura.errors import DataError
from mixtura.runs.checkpoint import Checkpoints
from mixtura.train import Trainer, build_decoder, build_trainer
from mixtura.train.step_report import StepReport

STEPS = 3


@dataclass
class Meeting:
    """Where threads exchange what they sum."""

    count: int
    given: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.given = [None] * self.count
        self.barrier = Barrier(self.count, timeout=60)


@dataclass(frozen=True)
class ThreadRank:
    meeting: Meeting
    index: int

    @property
    def count(self) -> int:
        return self.meeting.count

    def sum(self, of: Any) -> Any:
        self.meeting.given[self.index] = of
        self.meeting.barrier.wait()
        total = torch.stack(self.meeting.given).sum(0)
        self.meeting.barrier.wait()
        return total

    def barrier(self) -> None:
        self.meeting.barrier.wait()


def ranks_of(count: int) -> list[ThreadRank]:
    meeting = Meeting(count)
    return [ThreadRank(meeting, index) for index in range(count)]


@pytest.mark.parametrize(
    "router",
    [
        "{kind: softmax_topk}",
        "{kind: sigmoid_topk}",
        "{kind: expert_threshold}",
    ],
)
def test_two_ranks_train_as_one_process_does(make_recipe, corpus: Corpus, router: str) -> None:
    recipe = make_recipe(f"model.moe.router={router}", "model.moe.balance={scope: sequence}")
    config = recipe.train
    if "threshold" in router:
        # Thresholds are means over batches, and a rank's part is a batch as a micro-step is.
        config = config.model_copy(update={"batch": 2, "accumulation": 2})
    alone = build_trainer(recipe.model_copy(update={"train": config}), corpus)
    expected = [alone.step() for _ in range(STEPS)]

    def made(rank: ThreadRank) -> Trainer:
        own = recipe.train
        batches = Batches(corpus.train, own.batch, own.length, own.seed, rank)
        return Trainer(own, build_decoder(recipe.model, own.seed), batches, lambda: (), rank)

    def trained(trainer: Trainer) -> tuple[Trainer, list[StepReport]]:
        return trainer, [trainer.step() for _ in range(STEPS)]

    # Made one after the other: threads share torch's generator.
    trainers = [made(rank) for rank in ranks_of(2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(trained, trainers))
    for trainer, reports in results:
        for found, wanted in zip(reports, expected, strict=True):
            assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
            assert found.losses == pytest.approx(wanted.losses, rel=1e-4)
            assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
            assert found.load == wanted.load
        state = trainer.decoder.state_dict()
        torch.testing.assert_close(state, alone.decoder.state_dict(), rtol=1e-3, atol=1e-5)
    (first, _), (second, _) = results
    # Bit for bit: ranks that part by a bit part for good.
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            first.decoder.state_dict().values(), second.decoder.state_dict().values(), strict=True
        )
    )


def test_batches_of_ranks_are_parts_of_one_batch(corpus: Corpus) -> None:
    whole = Batches(corpus.train, batch=4, length=16, seed=3)
    parts = [Batches(corpus.train, 4, 16, 3, rank) for rank in ranks_of(2)]
    for step in (0, 1, 50):
        joined = torch.cat([part.at(step).tokens_BS for part in parts])
        assert torch.equal(joined, whole.at(step).tokens_BS)
        assert parts[0].at(step).tokens_BS.shape == (2, 16)


def test_a_batch_that_ranks_cannot_share_is_refused(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="batch=4 must be a multiple of 3, the number of ranks"):
        Batches(corpus.train, 4, 16, 0, ranks_of(3)[1])


def test_the_first_rank_alone_writes_checkpoints(
    make_recipe, corpus: Corpus, tmp_path: Path
) -> None:
    state = build_trainer(make_recipe(), corpus).state()
    folders = [tmp_path / str(index) for index in range(2)]

    def save(rank: ThreadRank) -> Path:
        checkpoints = Checkpoints(folders[rank.index], ranks=rank)
        return checkpoints.save(state, "recipe", "corpus", {})

    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(save, ranks_of(2)))
    assert [path.is_dir() for path in paths] == [True, False]
