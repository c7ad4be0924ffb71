"""Whole runs in this process: what they write, how they stop, how they go on."""

import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixtura.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StorageError
from mixtura.runs import Recipe, RunFolder, load_recipe, read_journal
from mixtura.train import RunFacts, StepReport, Summary, View, train

TIMES = {"seconds", "tokens_per_second"}


class Recorder(View):
    """Keeps what the run shows, and may act at a step."""

    def __init__(self, act_at: int = 0, act: object = None) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []
        self.facts: RunFacts | None = None
        self._act_at, self._act = act_at, act

    def started(self, facts: RunFacts) -> None:
        self.facts = facts

    def stepped(self, report: StepReport, *, logged: bool) -> None:
        self.steps.append(report.step)
        if report.step == self._act_at and callable(self._act):
            self._act()

    def log(self, line: str) -> None:
        self.lines.append(line)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def without_times(path: Path) -> list[dict[str, object]]:
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_journal(path)
    ]


def newest_weights(out: Path) -> dict[str, torch.Tensor]:
    newest = RunFolder(out).checkpoints().newest()
    assert newest is not None
    return load_file(newest / "model.safetensors")


def assert_same_run(out: Path, other: Path) -> None:
    """Bit for bit: every logged number but times, every evaluation, every weight."""
    assert without_times(out / "log.jsonl") == without_times(other / "log.jsonl")
    assert without_times(out / "eval.jsonl") == without_times(other / "eval.jsonl")
    ours, theirs = newest_weights(out), newest_weights(other)
    assert all(ours[name].equal(theirs[name]) for name in ours | theirs)


@pytest.fixture(scope="module")
def whole(make_recipe, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """A run of 12 steps that nothing disturbed."""
    return train(make_recipe(), tmp_path_factory.mktemp("whole"), cache=cache)


def test_a_run_folder_is_complete(whole: Summary, make_recipe) -> None:
    out = whole.folder
    assert {path.name for path in out.iterdir()} == {
        "recipe.yaml", "shape.json", "environment.json", "corpus.json", "tokenizer", "log.jsonl",
        "eval.jsonl", "checkpoints", "summary.json",
    }  # fmt: skip
    assert load_recipe(out / "recipe.yaml") == make_recipe()
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000012"]
    assert [record["step"] for record in read_journal(out / "eval.jsonl")] == [6, 12]
    log = read_journal(out / "log.jsonl")
    assert [record["step"] for record in log] == list(range(1, 13))
    assert log[-1]["tokens"] == 12 * 4 * 16
    assert [[sum(load_E) for load_E in record["load"]] for record in log] == [[128, 128]] * 12


def test_environment_names_each_layers_products(whole: Summary) -> None:
    environment = json.loads((whole.folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert [entry["layer"] for entry in environment["moe_layers"]] == [0, 1]
    assert {entry["products"] for entry in environment["moe_layers"]} <= {
        "grouped",
        "loop",
        "ragged",
    }


def test_shape_counts_parameters(whole: Summary) -> None:
    shape = json.loads((whole.folder / "shape.json").read_text(encoding="utf-8"))
    weights = newest_weights(whole.folder)
    assert shape["total_parameters"] == sum(weight.numel() for weight in weights.values())


def test_summary(whole: Summary) -> None:
    log = read_journal(whole.folder / "log.jsonl")
    # All 12 steps lie within the last 100: the busiest expert's sum over the mean of the sums.
    expected = []
    for layer in (0, 1):
        sums = [sum(record["load"][layer][expert] for record in log) for expert in range(4)]
        expected.append(max(sums) / (sum(sums) / 4))
    assert whole.load_max_over_mean == expected
    assert (
        whole.heldout_bits_per_byte
        == (read_journal(whole.folder / "eval.jsonl")[-1]["heldout_bits_per_byte"])
    )
    assert (whole.steps, whole.tokens, whole.interrupted) == (12, 12 * 64, False)
    written = json.loads((whole.folder / "summary.json").read_text(encoding="utf-8"))
    assert written == whole.tree()


@pytest.mark.parametrize("stop_at", [1, 3, 6, 11])
def test_ctrl_c_saves_and_a_resumed_run_is_the_same(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path, stop_at: int
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    view = Recorder(stop_at, ctrl_c)
    stopped = train(make_recipe(), tmp_path, view=view, cache=cache)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (stopped.interrupted, stopped.steps, view.steps[-1]) == (True, stop_at, stop_at)
    assert f"stopped after step {stop_at}, saved; go on with --resume" in view.lines
    newest = RunFolder(tmp_path).checkpoints().newest()
    assert newest is not None
    assert newest.name == f"step-{stop_at:08d}"
    assert not (tmp_path / "summary.json").exists()
    view = Recorder()
    resumed = train(make_recipe(), tmp_path, resume=True, view=view, cache=cache)
    assert view.steps == list(range(stop_at + 1, 13))
    assert view.facts is not None
    assert view.facts.resumed_step == stop_at
    assert_same_run(tmp_path, whole.folder)
    assert resumed.load_max_over_mean == whole.load_max_over_mean
    assert resumed.heldout_bits_per_byte == whole.heldout_bits_per_byte
    assert not resumed.interrupted


def test_ctrl_c_at_the_last_step_is_a_complete_run(
    make_recipe, cache: Path, tmp_path: Path
) -> None:
    summary = train(make_recipe(), tmp_path, view=Recorder(12, ctrl_c), cache=cache)
    assert not summary.interrupted
    assert summary.heldout_bits_per_byte is not None


def test_a_second_ctrl_c_stops_at_once(make_recipe, cache: Path, tmp_path: Path) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(), tmp_path, view=Recorder(4, twice), cache=cache)
    # As after a kill, step 3 is there.
    assert train(make_recipe(), tmp_path, resume=True, cache=cache).steps == 12


def test_resuming_drops_what_came_after_the_checkpoint(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    # As if killed at the end, before the last checkpoint, and in the middle of a line.
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    (out / "checkpoints" / ".step-00000012.00000000.partial").mkdir()
    with (out / "log.jsonl").open("ab") as log:
        log.write(b'{"step": 13, "lo')
    train(make_recipe(), out, resume=True, cache=cache)
    assert_same_run(out, whole.folder)
    assert not list(out.rglob("*.partial"))


def test_a_run_without_a_checkpoint_starts_again(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    shutil.rmtree(out / "checkpoints")
    view = Recorder()
    train(make_recipe(), out, resume=True, view=view, cache=cache)
    assert f"{out} has no checkpoint yet; starting from step 0" in view.lines
    assert_same_run(out, whole.folder)


def test_resuming_where_nothing_began_starts(make_recipe, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # Left by a kill before recipe.yaml, which is written last.
    (out / "tokenizer").mkdir(parents=True)
    (out / "shape.json").write_text("{}", encoding="utf-8")
    assert train(make_recipe("train.steps=2"), out, resume=True, cache=cache).steps == 2


def test_a_complete_run_is_not_trained_again(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    view = Recorder()
    again = train(make_recipe(), out, resume=True, view=view, cache=cache)
    assert view.steps == []
    assert again.heldout_bits_per_byte == whole.heldout_bits_per_byte
    assert_same_run(out, whole.folder)


def test_a_run_in_the_way_is_refused(whole: Summary, make_recipe, cache: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in whole.folder.rglob("*"))
    out = whole.folder
    with pytest.raises(CheckpointError, match="already holds this run; go on with --resume"):
        train(make_recipe(), out, cache=cache)
    different = "already holds a different run: train.lr is 0.001 there and 0.5 here; choose"
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=different):
            train(make_recipe("train.lr=0.5"), out, resume=resume, cache=cache)
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before


def test_a_folder_of_something_else_is_refused(make_recipe, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match=r"holds 'thesis\.tex' and no run"):
        train(make_recipe(), tmp_path, cache=cache)
    with pytest.raises(StorageError, match="is a file, not a folder"):
        train(make_recipe(), tmp_path / "thesis.tex", cache=cache)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_lost_its_recipe_is_refused(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    (out / "recipe.yaml").unlink()
    for resume in (False, True):
        with pytest.raises(StorageError, match=r"holds 'checkpoints' and no run \(recipe\.yaml is"):
            train(make_recipe(), out, resume=resume, cache=cache)


def test_two_processes_do_not_share_a_folder(make_recipe, cache: Path, tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path).claimed(),
        pytest.raises(StorageError, match="another process is training there"),
    ):
        train(make_recipe(), tmp_path, cache=cache)


def test_changed_text_is_refused(
    make_recipe, cache: Path, tmp_path: Path, tiny_corpus: Path
) -> None:
    text = tmp_path / "text"
    shutil.copytree(tiny_corpus, text)
    recipe = make_recipe(f"data.source.paths=[{text}]", "train.steps=3")
    out = tmp_path / "run"
    train(recipe, out, view=Recorder(2, ctrl_c), cache=cache)
    (text / "more.txt").write_text("more " * 50, encoding="utf-8")
    with pytest.raises(CheckpointError, match="was trained on other text"):
        train(recipe, out, resume=True, cache=cache)


def test_a_checkpoint_of_another_run_is_refused(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path
) -> None:
    recipe = make_recipe("train.seed=1")
    train(recipe, tmp_path, view=Recorder(2, ctrl_c), cache=cache)
    foreign = tmp_path / "checkpoints" / "step-00000009"
    shutil.copytree(whole.folder / "checkpoints" / "step-00000009", foreign)
    with pytest.raises(CheckpointError, match="step-00000009: is of another run; remove it"):
        train(recipe, tmp_path, resume=True, cache=cache)


def test_another_environment_is_told(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    path = out / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**environment, "threads": 64}), encoding="utf-8")
    view = Recorder()
    train(make_recipe(), out, resume=True, view=view, cache=cache)
    assert view.lines == [
        "not the environment that began this run (threads: 64 -> 1): last bits may differ"
    ]


def test_threads(make_recipe, cache: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        train(make_recipe("train.threads=2", "train.steps=2"), tmp_path, cache=cache)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data.source.paths=[{empty}]", DataError, "{empty}"),
        ("data.source.paths=[{binary}]", DataError, "blob.bin"),
        ("train.device=cuda:9", ConfigError, "torch sees"),
        ("data.source.paths=[{short}]", DataError, "the heldout text has"),
    ],
)
def test_bad_input_writes_nothing(
    make_recipe, cache: Path, tmp_path: Path, override: str, error: type[Exception], message: str
) -> None:
    places = {name: tmp_path / name for name in ("empty", "binary", "short")}
    for place in places.values():
        place.mkdir()
    (places["binary"] / "blob.bin").write_bytes(b"\0\1\2")
    # 20 texts of 15 bytes and an end: one is held out, and a window of 16 needs a target too.
    for number in range(20):
        (places["short"] / f"{number}.txt").write_text(f"the text no. {number:02}")
    recipe = make_recipe(override.format(**places), "data.heldout=0.01")
    with pytest.raises(error) as caught:
        train(recipe, tmp_path / "run", cache=cache)
    line = str(caught.value)
    assert message.format(**places) in line
    assert "\n" not in line
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(
    make_recipe, cache: Path, tmp_path: Path
) -> None:
    # A rate of 1e30 overflows within a few steps; weights that still are finite were saved.
    recipe = make_recipe("train.lr=1e30", "train.warmup=0", "train.checkpoint_every=1")
    with pytest.raises(NonFiniteError) as caught:
        train(recipe, tmp_path, cache=cache)
    line = str(caught.value)
    assert line.startswith("step ")
    assert "it began in " in line or "the update left " in line
    newest = RunFolder(tmp_path).checkpoints().newest()
    good = f"last good checkpoint: {newest}" if newest else "there is no checkpoint yet"
    assert f"; {good}; train with a lower train.lr" in line
    assert "\n" not in line


def test_a_full_disk_stops_the_run_and_a_resumed_one_is_the_same(
    whole: Summary, make_recipe, cache: Path, tmp_path: Path, full_disk
) -> None:
    def fill() -> None:
        disk.enter_context(full_disk(2000))

    with ExitStack() as disk, pytest.raises(StorageError, match="go on from the last checkpoint"):
        train(make_recipe(), tmp_path, view=Recorder(8, fill), cache=cache)
    train(make_recipe(), tmp_path, resume=True, cache=cache)
    assert_same_run(tmp_path, whole.folder)


def test_alarms_are_logged(make_recipe, cache: Path, tmp_path: Path) -> None:
    # Without balancing, a rate of 0.1 collapses a router of 8 within 100 steps.
    recipe = make_recipe(
        "train.steps=110",
        "train.lr=0.1",
        "train.log_every=1000",
        "train.checkpoint_every=1000",
        "train.eval_every=1000",
        "model.moe={num_experts: 8, top_k: 1, expert_width: 8, router: {kind: switch}, "
        "balance: {loss: 0, z_loss: 0}}",
    )
    train(recipe, tmp_path, cache=cache)
    log = read_journal(tmp_path / "log.jsonl")
    # Only steps with an alarm are logged here, and the last.
    assert [bool(record["alarms"]) for record in log[:-1]] == [True] * (len(log) - 1)
    assert log[0]["step"] >= 100
    alarms = [alarm for record in log for alarm in record["alarms"]]
    assert {"kind", "layer", "experts", "step", "window", "text"} == set(alarms[0])
    told = [(alarm["kind"], alarm["layer"], expert) for alarm in alarms
            for expert in alarm["experts"]]  # fmt: skip
    assert len(told) == len(set(told))


def test_skipped_files_are_named(make_recipe, cache: Path, tmp_path: Path, tiny_corpus: Path):
    text = tmp_path / "text"
    shutil.copytree(tiny_corpus, text)
    (text / "blob.bin").write_bytes(b"\0\1\2")
    view = Recorder()
    recipe: Recipe = make_recipe(f"data.source.paths=[{text}]", "train.steps=2")
    train(recipe, tmp_path / "run", view=view, cache=cache)
    assert len(view.lines) == 1
    assert view.lines[0].startswith("left out ")
    assert "blob.bin" in view.lines[0]
