import pytest

from mixtura.runs.schedule import ConstantConfig, CosineConfig, WSDConfig, share_of_peak
from mixtura.runs.train_config import TrainConfig


@pytest.mark.parametrize("schedule", [CosineConfig(), WSDConfig(), ConstantConfig()])
def test_warmup_is_a_straight_line_to_the_peak(schedule: CosineConfig) -> None:
    # 4 steps of warm-up: 1/4, 2/4, 3/4, 4/4.
    shares = [share_of_peak(schedule, step, warmup=4, steps=20) for step in (1, 2, 3, 4)]
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_cosine() -> None:
    # 4 of warm-up leave 6: step 7 is half-way (cos pi/2 = 0), step 6 a third (cos pi/3 = 1/2).
    schedule = CosineConfig(final=0.1)
    # 0.1 + 0.9 * (1 + 1/2) / 2 = 0.775; 0.1 + 0.9 * 1/2 = 0.55; 0.1 + 0 = 0.1
    shares = [share_of_peak(schedule, step, warmup=4, steps=10) for step in (6, 7, 10)]
    assert shares == pytest.approx([0.775, 0.55, 0.1])


def test_wsd_holds_and_then_falls_in_a_straight_line() -> None:
    # 0.4 * 10 = 4 steps of decay, 7 to 10: each takes off 0.8 / 4 = 0.2.
    schedule = WSDConfig(decay_share=0.4, final=0.2)
    shares = [share_of_peak(schedule, step, warmup=2, steps=10) for step in range(1, 11)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_a_decay_as_long_as_the_run_begins_after_the_warmup() -> None:
    # 4 steps, 2 of warm-up: 2 are left to fall from 1 to 0.
    schedule = WSDConfig(decay_share=1, final=0)
    shares = [share_of_peak(schedule, step, warmup=2, steps=4) for step in range(1, 5)]
    assert shares == [0.5, 1.0, 0.5, 0.0]


def test_constant_without_warmup() -> None:
    shares = [share_of_peak(ConstantConfig(), step, warmup=0, steps=3) for step in (1, 2, 3)]
    assert shares == [1.0, 1.0, 1.0]


def test_a_run_that_is_all_warmup() -> None:
    shares = [share_of_peak(CosineConfig(), step, warmup=2, steps=2) for step in (1, 2)]
    assert shares == [0.5, 1.0]


def test_learning_rate_is_the_share_of_lr() -> None:
    config = TrainConfig(steps=10, batch=1, length=1, lr=2e-3, warmup=4)
    assert config.learning_rate(1) == 0.25 * 2e-3
