"""Runs the demo: times a few steps, trains both twins in turn, and compares them in a report."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from mixtura.checkpoints.loaded_run import load_run
from mixtura.data import Corpus
from mixtura.demo.outcome import Outcome, TwinOutcome, seconds_to_reach
from mixtura.demo.pacer import Pacer
from mixtura.demo.recipes import EVALUATIONS, twin_recipes
from mixtura.engine.generate import generate
from mixtura.engine.sampling import Sampling
from mixtura.errors import CheckpointError
from mixtura.insight import Subject, write_report
from mixtura.runs import Recipe, RunFolder, read_journal
from mixtura.runs.step_plan import StepPlan
from mixtura.train import (
    StepReport,
    Summary,
    TrainingRun,
    View,
    opened_run,
    prepare_corpus,
    train_in_turn,
)
from mixtura.train.trainer_setup import build_trainer

# The time limit of the whole demo, without the installation.
LIMIT_SECONDS = 360.0
# The time for starting the command and for writing the page of the report.
OTHER_SECONDS = 8.0
# The time of the last evaluation, the report and the sample, in rounds (one step of both twins).
AFTERWARDS_STEPS = 20.0
# The planned time of training, which leaves time for reading the text and for the work after
# training. During training, the pacer corrects the number of steps to keep the limit.
BUDGET_SECONDS = 290.0
MOST_STEPS = 2400
FEWEST_STEPS = 20
TIMED_STEPS = 8
# The time limit of timing the first rounds; on a busy machine fewer than eight rounds may fit.
TIMED_SECONDS = 20.0
# The cost of an evaluation's forward passes, in training steps.
EVALUATION_STEPS = 5.3
PROMPT = "def read_lines(path):\n    "
SAMPLE_TOKENS = 200


def run_demo(
    out: Path,
    *,
    view: View,
    resume: bool = False,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    clock: Callable[[], float] = perf_counter,
) -> Outcome | None:
    """Train both twins, in `out`/moe and `out`/dense, and write `out`/report.html.

    Unless `steps` is given, the number of steps is chosen so that the whole demo takes six minutes,
    and `Pacer` corrects the number during training. If the demo is interrupted, both runs are saved
    and the result is None; `resume` then continues with the number of steps that was last set.
    Raises ConfigError, StorageError or CheckpointError.
    """
    began = clock()
    folders = {name: RunFolder(out / name) for name in ("moe", "dense")}
    with view:
        recipes, round_seconds = _recipes(folders, resume, steps, tuple(overrides), view, clock)
        corpus = prepare_corpus(recipes["moe"], view)

        def pacer(runs: Sequence[TrainingRun]) -> Pacer | None:
            if round_seconds is None:
                return None
            ends = began + LIMIT_SECONDS - OTHER_SECONDS
            overhead = _overhead(recipes["moe"].train.steps)
            return Pacer(runs, clock, ends, AFTERWARDS_STEPS, round_seconds, overhead)

        summaries = _train(recipes, corpus, folders, view, pacer, resume=resume)
    if any(summary.interrupted for summary in summaries.values()):
        return None
    outcomes = _outcomes(recipes, folders, summaries)
    plan = folders["moe"].plan(recipes["moe"])
    report = write_report(out / "moe", out / "report.html", out / "dense", subject=_opener(corpus))
    return Outcome(
        moe=outcomes["moe"],
        dense=outcomes["dense"],
        steps=summaries["moe"].steps,
        steps_planned=plan.steps,
        cut_because=_why_cut(plan),
        tokens=summaries["moe"].tokens,
        sample=PROMPT + _sample(out / "moe"),
        report=report,
        seconds=clock() - began,
    )


def _why_cut(plan: StepPlan) -> str | None:
    """The reason for the correction to the fewest steps; None if no steps were cut in the end.

    Later corrections may have restored some steps.
    """
    if plan.last >= plan.steps:
        return None
    return min(plan.corrections, key=lambda correction: correction.steps).reason


def free_folder(base: Path) -> Path:
    """The first of `base`, base-2, base-3 and so on that does not exist."""
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _recipes(
    folders: dict[str, RunFolder],
    resume: bool,
    steps: int | None,
    overrides: tuple[str, ...],
    view: View,
    clock: Callable[[], float],
) -> tuple[dict[str, Recipe], float | None]:
    """Both recipes, and the seconds of a round, from which the number of steps was computed.

    The seconds are None if the number of steps was given, or comes from a resumed demo.
    """
    recorded = {name: folder.recorded() for name, folder in folders.items()}
    if resume:
        found = {name: recipe for name, recipe in recorded.items() if recipe is not None}
        if len(found) < len(folders):
            root = folders["moe"].root.parent
            raise CheckpointError(f"{root}: holds no demo to resume; leave out --resume")
        return found, None
    drafts = twin_recipes(steps or MOST_STEPS, overrides)
    for name, folder in folders.items():
        folder.check(drafts[name], resume=False)
    if steps is not None:
        return drafts, None
    round_seconds = _measured_round_seconds(drafts, view, clock)
    return twin_recipes(_steps_that_fit(round_seconds, view), overrides), round_seconds


def _measured_round_seconds(
    recipes: dict[str, Recipe], view: View, clock: Callable[[], float]
) -> float:
    """Seconds of a round on this machine, from a few rounds whose models are not used further."""
    corpus = prepare_corpus(recipes["moe"], view)
    trainers = [build_trainer(recipe, corpus) for recipe in recipes.values()]
    rounds: list[float] = []
    began = clock()
    while len(rounds) < 2 + TIMED_STEPS and (len(rounds) < 3 or clock() - began < TIMED_SECONDS):
        rounds.append(sum(trainer.step().seconds for trainer in trainers))
    # The first two rounds warm the caches and are not counted.
    return statistics.median(rounds[2:])


def _steps_that_fit(round_seconds: float, view: View) -> int:
    fitting = int(BUDGET_SECONDS / (round_seconds * _overhead(1000)))
    if fitting >= 200:
        fitting = fitting // 20 * 20
    steps = max(FEWEST_STEPS, min(MOST_STEPS, fitting))
    minutes = steps * round_seconds * _overhead(steps) / 60
    view.log(
        f"a step of both twins takes {round_seconds * 1000:.0f} ms here: training for {steps} "
        f"steps (at most {MOST_STEPS}), about {minutes:.1f} minutes; fewer if other work slows the "
        "machine on the way"
    )
    return steps


def _overhead(steps: int) -> float:
    """The factor by which evaluations and checkpoints lengthen a step; 1.06 at 1,000 steps."""
    return 1.01 + EVALUATIONS * EVALUATION_STEPS / steps


class _TwinView(View):
    """The dense twin's view, which shows only a comparison with the MoE at each evaluation."""

    def __init__(self, main: View, moe_evaluations: Path) -> None:
        self._main, self._moe_evaluations = main, moe_evaluations

    def evaluated(self, step: int, bits_per_byte: float) -> None:
        rows = {row["step"]: row for row in read_journal(self._moe_evaluations)}
        if step in rows:
            moe = rows[step]["heldout_bits_per_byte"]
            self._main.log(
                f"step {step}: held-out bits per byte: MoE {moe:.4f}, "
                f"dense twin {bits_per_byte:.4f} ({moe / bits_per_byte - 1:+.1%})"
            )

    def stepped(self, report: StepReport, *, logged: bool) -> None: ...

    def log(self, line: str) -> None: ...


def _train(
    recipes: dict[str, Recipe],
    corpus: Corpus,
    folders: dict[str, RunFolder],
    view: View,
    pacer: Callable[[Sequence[TrainingRun]], Pacer | None],
    *,
    resume: bool,
) -> dict[str, Summary]:
    _share_corrections(recipes, folders)
    views = {"moe": view, "dense": _TwinView(view, folders["moe"].evaluations)}
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                opened_run(recipe, corpus, folders[name], views[name], resume=resume)
            )
            for name, recipe in recipes.items()
        ]
        paced = pacer(runs)
        summaries = train_in_turn(runs, None if paced is None else paced.after_round)
        return dict(zip(recipes, summaries, strict=True))


def _share_corrections(recipes: dict[str, Recipe], folders: dict[str, RunFolder]) -> None:
    """Write the newest step plan to both folders, whose plans may differ.

    They differ if the process was killed after it wrote a correction to only one folder.
    """
    plans = {name: folders[name].plan(recipe) for name, recipe in recipes.items()}
    newest = max(plans.values(), key=lambda plan: len(plan.corrections))
    for name, plan in plans.items():
        if plan != newest:
            folders[name].write_plan(newest)


def _outcomes(
    recipes: dict[str, Recipe], folders: dict[str, RunFolder], summaries: dict[str, Summary]
) -> dict[str, TwinOutcome]:
    target = summaries["dense"].heldout_bits_per_byte
    assert target is not None, "a complete run ends with an evaluation"
    outcomes: dict[str, TwinOutcome] = {}
    for name, recipe in recipes.items():
        summary, shape = summaries[name], recipe.model
        assert summary.heldout_bits_per_byte is not None
        is_moe = shape.moe is not None
        outcomes[name] = TwinOutcome(
            total_parameters=shape.total_parameters(),
            active_parameters=shape.active_parameters("A"),
            flops_per_token=shape.flops_per_token(recipe.train.length),
            tokens_per_second=summary.tokens / summary.seconds,
            heldout_bits_per_byte=summary.heldout_bits_per_byte,
            learning_rate=recipe.train.lr,
            training_seconds=summary.seconds,
            load_max_over_mean=summary.load_max_over_mean if is_moe else None,
            seconds_to_dense_loss=_seconds_to(target, folders[name]) if is_moe else None,
        )
    return outcomes


def _seconds_to(target: float, folder: RunFolder) -> float | None:
    seconds = {row["step"]: row["seconds"] for row in read_journal(folder.log)}
    return seconds_to_reach(
        target,
        [
            (seconds[row["step"]], row["heldout_bits_per_byte"])
            for row in read_journal(folder.evaluations)
            if row["step"] in seconds
        ],
    )


def _sample(run: Path) -> str:
    loaded = load_run(run)
    sampling = Sampling(temperature=0.6, top_p=0.95, seed=0)
    room = loaded.decoder.config.context - len(loaded.tokenizer.encode(PROMPT))
    length = min(SAMPLE_TOKENS, room)
    return "".join(generate(loaded.decoder, loaded.tokenizer, PROMPT, sampling, length))


def _opener(corpus: Corpus) -> Callable[[Path], Subject]:
    def open_subject(run: Path) -> Subject:
        loaded = load_run(run)
        return Subject(loaded.decoder, corpus, loaded.step)

    return open_subject
