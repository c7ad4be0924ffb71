"""The training loop: steps, log records, evaluations and checkpoints of a run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mixtura.errors import NonFiniteError
from mixtura.runs.folder import RunFolder
from mixtura.runs.journal import Journal, read_journal
from mixtura.runs.recipe import Recipe
from mixtura.runs.step_plan import Correction, StepPlan
from mixtura.train.environment import versions
from mixtura.train.interrupt import deferred_interrupts
from mixtura.train.step_report import StepReport, busiest_over_mean
from mixtura.train.trainer import Trainer
from mixtura.train.view import RunFacts, View

if TYPE_CHECKING:
    from mixtura.train.tensorboard_curves import TensorBoardCurves


@dataclass(frozen=True, slots=True)
class Summary:
    """The results of a run that is complete or was interrupted."""

    folder: Path
    steps: int
    """all steps of the run, including those before it was last resumed"""
    tokens: int
    seconds: float
    """the time of all training steps, without evaluation and checkpoints"""
    heldout_bits_per_byte: float | None
    """the result of the last evaluation; None if the run stopped before its first evaluation"""
    load_max_over_mean: list[float]
    """for each MoE layer, the largest load of an expert divided by the mean load, where a load is
    the sum over the last 100 steps; empty before the first step"""
    interrupted: bool
    """whether SIGINT or SIGTERM stopped the run before its last step"""

    def tree(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


class TrainingRun:
    """Trains one run, writes its logs and checkpoints, and reports its progress to a view."""

    def __init__(
        self, trainer: Trainer, recipe: Recipe, corpus_digest: str, folder: RunFolder, view: View
    ) -> None:
        self._trainer, self._recipe, self._folder, self._view = trainer, recipe, folder, view
        self._config = recipe.train
        self._recipe_digest, self._corpus_digest = folder.recipe_digest(), corpus_digest
        self._checkpoints = folder.checkpoints(self._config.keep)
        self._saved_step = trainer.steps_done
        self._open = ExitStack()
        self._log = self._open.enter_context(closing(Journal(folder.log)))
        self._evaluations = self._open.enter_context(closing(Journal(folder.evaluations)))
        self._curves: TensorBoardCurves | None = None
        if self._config.tensorboard:
            self._curves = _open_curves(folder.tensorboard, trainer.steps_done)
            self._open.callback(self._curves.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._open.close()

    @property
    def steps_left(self) -> int:
        return self._trainer.plan.last - self._trainer.steps_done

    @property
    def seconds(self) -> float:
        """The time of all training steps, without evaluation and checkpoints."""
        return self._trainer.seconds

    @property
    def plan(self) -> StepPlan:
        return self._trainer.plan

    def correct(self, steps: int, reason: str) -> None:
        """Change the run's total number of steps to `steps`.

        The rest of the learning rate's schedule is stretched or shortened to fit. The correction is
        written to the disk before the next step. So a run that is resumed from an earlier
        checkpoint applies it after the same step again. Raises StorageError if it cannot be
        written.
        """
        done = self._trainer.steps_done
        assert steps > done, "the last step is still to come"
        plan = self.plan.corrected(Correction(after=done, steps=steps, reason=reason))
        self._folder.write_plan(plan)
        self._trainer.plan = plan
        self._view.replanned(steps)

    def begin(self) -> None:
        self._view.started(self._facts())

    def advance(self) -> None:
        """Take one step, and make the log record, evaluation and checkpoint that are then due."""
        config = self._config
        report = self._step()
        last = report.step == self.plan.last
        logged = last or report.step % config.log_every == 0 or bool(report.alarms)
        if logged:
            self._record(report)
        self._view.stepped(report, logged=logged)
        if last or report.step % config.eval_every == 0:
            self._evaluate()
        if report.step % config.checkpoint_every == 0:
            self._save()

    def end(self) -> Summary:
        """Save a checkpoint if there are steps since the last one, and summarise the run."""
        trainer = self._trainer
        if self._saved_step != trainer.steps_done:
            self._save()
        complete = self.steps_left == 0
        if not complete:
            self._view.log(f"stopped after step {trainer.steps_done}, saved; go on with --resume")
        summary = self._summary(interrupted=not complete)
        if complete:
            self._folder.write_summary(summary.tree())
        return summary

    def _step(self) -> StepReport:
        try:
            return self._trainer.step()
        except NonFiniteError as error:
            raise self._with_remedy(error) from error

    def _record(self, report: StepReport) -> None:
        self._log.append(
            {
                "step": report.step,
                "tokens": self._trainer.tokens_done,
                "seconds": self._trainer.seconds,
                "loss": report.loss,
                "losses": report.losses,
                "lr": report.learning_rate,
                "grad_norm": report.grad_norm,
                "tokens_per_second": report.tokens_per_second,
                "load": report.load,
                "max_over_mean": report.max_over_mean,
                "dropped": report.dropped,
                "alarms": [{**asdict(alarm), "text": str(alarm)} for alarm in report.alarms],
            }
        )
        if self._curves is not None:
            self._curves.logged(report, self._trainer.moe_layers)

    def _evaluate(self) -> None:
        try:
            bits_per_byte = self._trainer.evaluate()
        except NonFiniteError as error:
            raise self._with_remedy(error) from error
        step = self._trainer.steps_done
        self._evaluations.append(
            {
                "step": step,
                "tokens": self._trainer.tokens_done,
                "heldout_bits_per_byte": bits_per_byte,
            }
        )
        if self._curves is not None:
            self._curves.evaluated(bits_per_byte, step)
        self._view.evaluated(step, bits_per_byte)

    def _save(self) -> None:
        self._log.sync()
        self._evaluations.sync()
        try:
            state = self._trainer.state()
        except NonFiniteError as error:
            raise self._with_remedy(error) from error
        self._checkpoints.save(state, self._recipe_digest, self._corpus_digest, versions())
        self._saved_step = state.step

    def _with_remedy(self, error: NonFiniteError) -> NonFiniteError:
        newest = self._checkpoints.newest()
        good = "there is no checkpoint yet" if newest is None else f"last good checkpoint: {newest}"
        remedy = "train with a lower train.lr, a longer train.warmup or a smaller train.clip"
        return NonFiniteError(f"{error}; {good}; {remedy}")

    def _facts(self) -> RunFacts:
        model = self._recipe.model
        return RunFacts(
            name=self._recipe.name,
            folder=self._folder.root,
            device=str(self._trainer.device),
            steps=self.plan.last,
            resumed_step=self._trainer.steps_done,
            moe_layers=self._trainer.moe_layers,
            total_parameters=model.total_parameters(),
            active_parameters=model.active_parameters("A"),
        )

    def _summary(self, *, interrupted: bool) -> Summary:
        evaluations = read_journal(self._evaluations.path)
        return Summary(
            folder=self._folder.root,
            steps=self._trainer.steps_done,
            tokens=self._trainer.tokens_done,
            seconds=self._trainer.seconds,
            heldout_bits_per_byte=_last_quality(evaluations),
            load_max_over_mean=self._recent_max_over_mean(),
            interrupted=interrupted,
        )

    def _recent_max_over_mean(self) -> list[float]:
        done = self._trainer.steps_done > 0
        return busiest_over_mean(self._trainer.recent_load) if done else []


def _last_quality(evaluations: Sequence[Mapping[str, Any]]) -> float | None:
    """The last evaluation's bits per byte; None before the first evaluation.

    It is also None if a user has edited the file so that the last line lacks the number.
    """
    found = evaluations[-1].get("heldout_bits_per_byte") if evaluations else None
    return found if isinstance(found, float) else None


def _open_curves(folder: Path, resumed_step: int) -> "TensorBoardCurves":
    # The import takes 0.1 s, so only a run with curves imports this module.
    from mixtura.train.tensorboard_curves import TensorBoardCurves

    return TensorBoardCurves(folder, resumed_step)


def train_in_turn(
    runs: Sequence[TrainingRun], after_round: Callable[[], None] | None = None
) -> list[Summary]:
    """Train all runs to their last step or an interrupt, with one step of each run in turn.

    Since the runs take turns, other programs slow them all down equally, and their speeds can be
    compared. `after_round` is called whenever all runs have equally many steps left, at least one.
    It may correct the runs' number of steps.
    """
    with deferred_interrupts() as interrupt:
        for run in runs:
            run.begin()
        while not interrupt.requested and any(run.steps_left for run in runs):
            # After a resume one run may be ahead of the others, and then waits for them.
            furthest_behind = max(run.steps_left for run in runs)
            for run in runs:
                if run.steps_left == furthest_behind:
                    run.advance()
            together = len({run.steps_left for run in runs}) == 1
            if after_round is not None and together and runs[0].steps_left:
                after_round()
        return [run.end() for run in runs]
