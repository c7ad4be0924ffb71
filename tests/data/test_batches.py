"""Batches by hand on ten tokens, and as a law on any file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtura.data import Batches, DataConfig, TokenFile, heldout_batches, prepare
from mixtura.errors import DataError


def token_file(count: int) -> TokenFile:
    """Tokens 0, 1, 2, ...; a domain for each hundred of them; widths 1, 2, 3, 1, 2, 3, ..."""
    index = np.arange(count)
    return TokenFile(
        name="train",
        tokens=index.astype("<u2"),
        domains=(index // 100).astype(np.uint8),
        widths=(1 + index % 3).astype(np.uint8),
        starts=np.zeros(1, np.int64),
        domain_bytes={},
    )


def test_heldout_windows_by_hand() -> None:
    # (10 - 1) // 3 = 3 windows; a batch of two, and one of the rest. Token n is 1 + n % 3 bytes:
    # targets 1..6 are 2 + 3 + 1 + 2 + 3 + 1 = 12, targets 7..9 are 2 + 3 + 1 = 6.
    first, second = heldout_batches(token_file(10), batch=2, length=3)
    assert first.tokens_BS.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.targets_BS.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert second.tokens_BS.tolist() == [[6, 7, 8]]
    assert second.targets_BS.tolist() == [[7, 8, 9]]
    assert (first.text_bytes, second.text_bytes) == (12, 6)


def test_a_limit_spreads_heldout_windows_over_the_file() -> None:
    # 9 windows of 10; 39 targets are 3 windows: numbers 0, 3 and 6, which start at 0, 30 and 60.
    (batch,) = heldout_batches(token_file(91), batch=8, length=10, limit_tokens=39)
    assert batch.tokens_BS[:, 0].tolist() == [0, 30, 60]
    (one,) = heldout_batches(token_file(91), batch=8, length=10, limit_tokens=1)
    assert one.tokens_BS.shape == (1, 10)
    everything = heldout_batches(token_file(91), batch=8, length=10, limit_tokens=10**9)
    assert sum(batch.tokens_BS.numel() for batch in everything) == 90


def test_a_batch_has_its_types_and_the_domains_of_its_tokens() -> None:
    batch = Batches(token_file(250), batch=3, length=20, seed=0).at(5)
    assert (batch.tokens_BS.dtype, batch.targets_BS.dtype) == (torch.int64, torch.int64)
    assert batch.domains_BS.dtype == torch.uint8
    assert batch.tokens_BS.shape == batch.targets_BS.shape == batch.domains_BS.shape == (3, 20)
    assert torch.equal(batch.domains_BS, (batch.tokens_BS // 100).to(torch.uint8))
    assert torch.equal(batch.targets_BS, (batch.tokens_BS + 1) % 250)
    assert batch.text_bytes == int((1 + batch.targets_BS % 3).sum())


@given(data=st.data(), length=st.integers(1, 40), batch=st.integers(1, 20), seed=st.integers(0))
def test_an_epoch_takes_each_token_once(
    data: st.DataObject, length: int, batch: int, seed: int
) -> None:
    count = data.draw(st.integers(length + 1, 300))
    batches = Batches(token_file(count), batch, length, seed)
    windows = count // length
    epoch = data.draw(st.integers(0, 3))
    samples = range(epoch * windows, (epoch + 1) * windows)
    targets = [
        batches.at(sample // batch).targets_BS[sample % batch].tolist() for sample in samples
    ]
    flat = [target for window in targets for target in window]
    assert len(flat) == len(set(flat)) == windows * length
    assert count - len(flat) < length
    assert batches.epochs_of(windows) == batch


@given(
    steps=st.lists(st.integers(0, 50), min_size=1, max_size=10),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**70),
)
def test_a_batch_depends_on_the_seed_and_the_step_alone(
    steps: list[int], batch: int, seed: int
) -> None:
    walked = Batches(token_file(200), batch, 16, seed)
    in_order = [walked.at(step) for step in range(51)]
    jumped = Batches(token_file(200), batch, 16, seed)
    for step in steps:
        assert torch.equal(jumped.at(step).tokens_BS, in_order[step].tokens_BS)


def test_the_order_is_the_same_on_every_machine() -> None:
    # Philox's bits are promised for good, so these numbers are as well.
    batches = Batches(token_file(100), batch=2, length=10, seed=7)
    assert batches.at(0).tokens_BS[:, 0].tolist() == [40, 0]
    assert batches.at(1000).tokens_BS[:, 0].tolist() == [55, 65]


def test_epochs_and_seeds_differ() -> None:
    def starts(seed: int, epoch: int) -> list[int]:
        batches = Batches(token_file(1000), batch=10, length=10, seed=seed)
        steps = range(epoch * 10, (epoch + 1) * 10)
        return [start for step in steps for start in batches.at(step).tokens_BS[:, 0].tolist()]

    assert len({tuple(starts(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    # Windows begin elsewhere in another epoch, and not always at multiples of the length.
    assert starts(0, 0)[0] % 10 != starts(0, 1)[0] % 10


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(DataError, match=r"seed=-1 must be at least 0"):
        Batches(token_file(10), batch=1, length=2, seed=-1)


@pytest.mark.parametrize(
    ("batch", "length", "told"),
    [
        (1, 10, r"the train text has 10 tokens, and a window of length=10 needs 11"),
        (0, 5, r"batch=0 must be at least 1"),
        (1, 0, r"length=0 must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(batch: int, length: int, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Batches(token_file(10), batch, length, seed=0)
    with pytest.raises(DataError, match=told):
        list(heldout_batches(token_file(10), batch, length))


def test_the_bytes_of_all_heldout_targets_are_the_text(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for n in range(40):
        (tmp_path / "corpus" / f"{n}.txt").write_text(f"Müller {n} " * 9, encoding="utf-8")
    tree = {
        "source": {"kind": "text", "paths": [str(tmp_path / "corpus")]},
        "tokenizer": {"kind": "bpe", "vocabulary": 300},
        "heldout": 0.5,
    }
    heldout = prepare(DataConfig.parse(tree), tmp_path / "cache").heldout
    # Windows of one token leave out none but the very first, which is no target.
    batches = list(heldout_batches(heldout, batch=64, length=1))
    assert sum(batch.targets_BS.numel() for batch in batches) == len(heldout) - 1
    expected = heldout.bytes_of_text - int(heldout.widths[0])
    assert sum(batch.text_bytes for batch in batches) == expected
