import os
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixtura.errors import StorageError
from mixtura.runs import read_journal
from mixtura.train import StepReport, View, train


class StopAt(View):
    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, report: StepReport, *, logged: bool) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_curves_equal_the_log_after_a_resume(make_recipe, cache: Path, tmp_path: Path) -> None:
    recipe = make_recipe("train.tensorboard=true", "train.steps=8")
    train(recipe, tmp_path, view=StopAt(4), cache=cache)
    train(recipe, tmp_path, resume=True, cache=cache)
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    log = read_journal(tmp_path / "log.jsonl")
    loss = [(event.step, event.value) for event in curves.Scalars("train/loss")]
    assert loss == [(r["step"], pytest.approx(r["loss"])) for r in log]
    busiest = [event.value for event in curves.Scalars("load_max_over_mean/layer_1")]
    assert busiest == pytest.approx([r["max_over_mean"][1] for r in log])
    evaluations = read_journal(tmp_path / "eval.jsonl")
    heldout = [(event.step, event.value) for event in curves.Scalars("heldout/bits_per_byte")]
    assert heldout == [(r["step"], pytest.approx(r["heldout_bits_per_byte"])) for r in evaluations]


def test_a_full_disk_is_one_line(full_disk, tmp_path: Path) -> None:
    from mixtura.train.tensorboard_curves import TensorBoardCurves

    curves = TensorBoardCurves(tmp_path / "tensorboard", resumed_step=0)
    # The two events of a new file take some 60 bytes, and so does an evaluation.
    with full_disk(100), pytest.raises(StorageError, match=r"cannot be written .*free some space"):
        curves.evaluated(1.0, step=1)
    curves.close()
