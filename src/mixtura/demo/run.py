"""Run the demo: time a few steps, train both twins in turn, compare, sample, report."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from mixtura.data import Corpus
from mixtura.demo.outcome import Outcome, TwinOutcome, seconds_to_reach
from mixtura.demo.recipes import twin_recipes
from mixtura.engine.generate import generate
from mixtura.engine.sampling import Sampling
from mixtura.errors import CheckpointError
from mixtura.insight import Subject, write_report
from mixtura.train import (
    Recipe,
    RunFolder,
    StepReport,
    Summary,
    View,
    load_run,
    opened_run,
    prepare_corpus,
    read_journal,
    train_in_turn,
)
from mixtura.train.building import build_trainer

# Training time that leaves room, within six minutes, for reading the text and writing the report.
BUDGET_SECONDS = 290.0
MOST_STEPS = 2400
FEWEST_STEPS = 200
TIMED_STEPS = 8
# What a share of an evaluation and of checkpoints adds to a step.
OVERHEAD = 1.06
PROMPT = "def read_lines(path):\n    "
SAMPLE_TOKENS = 200


def run_demo(
    out: Path,
    *,
    view: View,
    resume: bool = False,
    steps: int | None = None,
    overrides: Sequence[str] = (),
) -> Outcome | None:
    """Train into `out`/moe and `out`/dense and write `out`/report.html.

    As many steps as fit into five minutes, unless `steps` says how many. None where it was
    interrupted: both are saved, and `resume` goes on. Raises ConfigError, StorageError or
    CheckpointError.
    """
    began = perf_counter()
    folders = {name: RunFolder(out / name) for name in ("moe", "dense")}
    with view:
        recipes = _recipes(folders, resume, steps, tuple(overrides), view)
        corpus = prepare_corpus(recipes["moe"], view)
        summaries = _train(recipes, corpus, folders, view, resume=resume)
    if any(summary.interrupted for summary in summaries.values()):
        return None
    outcomes = _outcomes(recipes, folders, summaries)
    report = write_report(out / "moe", out / "report.html", out / "dense", subject=_opener(corpus))
    return Outcome(
        moe=outcomes["moe"],
        dense=outcomes["dense"],
        steps=summaries["moe"].steps,
        tokens=summaries["moe"].tokens,
        sample=PROMPT + _sample(out / "moe"),
        report=report,
        seconds=perf_counter() - began,
    )


def free_folder(base: Path) -> Path:
    """`base`, or base-2, base-3 and so on where that is taken."""
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
) -> dict[str, Recipe]:
    recorded = {name: folder.recorded() for name, folder in folders.items()}
    if resume:
        found = {name: recipe for name, recipe in recorded.items() if recipe is not None}
        if len(found) < len(folders):
            root = folders["moe"].root.parent
            raise CheckpointError(f"{root}: holds no demo to resume; leave out --resume")
        return found
    drafts = twin_recipes(steps or MOST_STEPS, overrides)
    for name, folder in folders.items():
        folder.check(drafts[name], resume=False)
    if steps is not None:
        return drafts
    return twin_recipes(_steps_that_fit(drafts, view), overrides)


def _steps_that_fit(recipes: dict[str, Recipe], view: View) -> int:
    """How many steps of both twins the budget pays for, from a few steps that are thrown away."""
    corpus = prepare_corpus(recipes["moe"], view)
    trainers = [build_trainer(recipe, corpus) for recipe in recipes.values()]
    pairs = [sum(trainer.step().seconds for trainer in trainers) for _ in range(2 + TIMED_STEPS)]
    pair = statistics.median(pairs[2:])
    fitting = int(BUDGET_SECONDS / (pair * OVERHEAD)) // 100 * 100
    steps = max(FEWEST_STEPS, min(MOST_STEPS, fitting))
    view.told(
        f"a step of both twins takes {pair * 1000:.0f} ms here: training for {steps} steps "
        f"(at most {MOST_STEPS}), about {steps * pair * OVERHEAD / 60:.1f} minutes"
    )
    return steps


class _TwinView(View):
    """The dense twin's view: silent, but for a comparison at each evaluation."""

    def __init__(self, main: View, moe_evaluations: Path) -> None:
        self._main, self._moe_evaluations = main, moe_evaluations

    def evaluated(self, step: int, bits_per_byte: float) -> None:
        rows = {row["step"]: row for row in read_journal(self._moe_evaluations)}
        if step in rows:
            moe = rows[step]["heldout_bits_per_byte"]
            self._main.told(
                f"step {step}: held-out bits per byte: MoE {moe:.4f}, "
                f"dense twin {bits_per_byte:.4f} ({moe / bits_per_byte - 1:+.1%})"
            )

    def stepped(self, report: StepReport, *, logged: bool) -> None: ...

    def told(self, line: str) -> None: ...


def _train(
    recipes: dict[str, Recipe],
    corpus: Corpus,
    folders: dict[str, RunFolder],
    view: View,
    *,
    resume: bool,
) -> dict[str, Summary]:
    views = {"moe": view, "dense": _TwinView(view, folders["moe"].evaluations)}
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                opened_run(recipe, corpus, folders[name], views[name], resume=resume)
            )
            for name, recipe in recipes.items()
        ]
        return dict(zip(recipes, train_in_turn(runs), strict=True))


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
