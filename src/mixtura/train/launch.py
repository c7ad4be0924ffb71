"""Starts a run, or resumes one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mixtura.data import Corpus, prepare
from mixtura.errors import CheckpointError, ConfigError
from mixtura.runs.changes import ChangedKeys
from mixtura.runs.checkpoint import MODEL, check_fits, read
from mixtura.runs.folder import RunFolder
from mixtura.runs.journal import cut
from mixtura.runs.recipe import Recipe
from mixtura.runs.step_plan import StepPlan
from mixtura.tokenizers import GivenConfig, Tokenizer, load_tokenizer
from mixtura.train.allocator import keep_freed_memory
from mixtura.train.device import choose_device
from mixtura.train.environment import changes, environment
from mixtura.train.origin import Origin, reopened_origin
from mixtura.train.trainer import Trainer
from mixtura.train.trainer_setup import build_trainer, check_model
from mixtura.train.training_run import Summary, TrainingRun, train_in_turn
from mixtura.train.view import View
from mixtura.user_cache import user_cache

_NAMED_SKIPS = 20


def corpus_cache() -> Path:
    """The folder in which prepared corpora are cached."""
    return user_cache() / "corpora"


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    view: View | None = None,
    cache: Path | None = None,
    changed: ChangedKeys | None = None,
    origin: Origin | None = None,
) -> Summary:
    """Train `recipe` and write the run to the folder `out`; `resume` continues the run in `out`.

    A resumed run keeps its recorded recipe, except for the keys in `changed`. A new run takes its
    first weights and its tokenizer from `origin`, if it is given.

    After SIGINT or SIGTERM the current step is finished, a checkpoint is saved, and
    `Summary.interrupted` is True. Raises ConfigError, DataError, CheckpointError, StorageError or
    NonFiniteError, each with a message of one line.
    """
    view = view or View()
    folder = RunFolder(out)
    # These checks come before the preparation of the corpus, which may take minutes. `opened_run`
    # repeats them once the folder is locked against other processes.
    check_model(recipe)
    recipe = folder.check(recipe, resume=resume, changed=changed)
    with view:
        tokenizer = _given_tokenizer(recipe, folder, origin)
        corpus = prepare_corpus(recipe, view, cache, tokenizer)
        with opened_run(
            recipe, corpus, folder, view, resume=resume, changed=changed, origin=origin
        ) as run:
            (summary,) = train_in_turn([run])
            return summary


def prepare_corpus(
    recipe: Recipe, view: View, cache: Path | None = None, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Prepare the recipe's corpus or open it from the cache, and log which files were left out."""
    choose_device(recipe.train.device)
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    corpus = prepare(recipe.data, cache or corpus_cache(), view.preparing, tokenizer)
    _name_skipped(corpus, view.log)
    return corpus


@contextmanager
def opened_run(
    recipe: Recipe,
    corpus: Corpus,
    folder: RunFolder,
    view: View,
    *,
    resume: bool,
    changed: ChangedKeys | None = None,
    origin: Origin | None = None,
) -> Iterator[TrainingRun]:
    """Lock the run's folder, restore its newest checkpoint, and yield the run for `train_in_turn`.

    Without a checkpoint the run begins at step 0.
    """
    keep_freed_memory()
    trainer = build_trainer(recipe, corpus)
    with folder.claimed():
        folder.check(recipe, resume=resume, changed=changed)
        _begin(trainer, recipe, corpus, folder, view, origin)
        with TrainingRun(trainer, recipe, corpus.digest, folder, view) as run:
            yield run


def _given_tokenizer(recipe: Recipe, folder: RunFolder, origin: Origin | None) -> Tokenizer | None:
    """The origin's tokenizer, or its copy in the folder of a run whose tokenizer is `given`.

    None lets `prepare` make the tokenizer by the recipe.
    """
    if origin is not None:
        return origin.tokenizer
    if isinstance(recipe.data.tokenizer, GivenConfig) and folder.tokenizer.is_dir():
        return load_tokenizer(folder.tokenizer)
    return None


def _name_skipped(corpus: Corpus, log: Callable[[str], None]) -> None:
    for skipped in corpus.skipped[:_NAMED_SKIPS]:
        log(f"left out {skipped.name}: {skipped.reason}")
    if corpus.skipped_count > _NAMED_SKIPS:
        log(f"left out {corpus.skipped_count - _NAMED_SKIPS} more")


def _begin(
    trainer: Trainer,
    recipe: Recipe,
    corpus: Corpus,
    folder: RunFolder,
    view: View,
    origin: Origin | None,
) -> None:
    """Set the trainer and the folder to the state of the newest checkpoint, or of step 0."""
    checkpoints = folder.checkpoints()
    checkpoints.clean()
    newest = checkpoints.newest()
    if newest is not None:
        _restore(trainer, corpus, folder, newest)
    else:
        _start(trainer, recipe, corpus, folder, view, origin)
    _change(trainer, recipe, folder, view)
    cut(folder.log, trainer.steps_done)
    cut(folder.evaluations, trainer.steps_done)
    now = environment(trainer)
    before = folder.write_environment(now)
    for change in changes(before, now) if before else ():
        view.log(f"not the environment that began this run ({change}): last bits may differ")


def _restore(trainer: Trainer, corpus: Corpus, folder: RunFolder, newest: Path) -> None:
    state, meta = folder.checkpoints().attempt(newest, read)
    # All tensors are compared with their digests before training continues with them.
    folder.checkpoints().check(newest, trainer.decoder.config).finish()
    if meta.recipe not in folder.recipe_digests():
        raise CheckpointError(f"{newest}: is of another run; remove it, or choose another --out")
    if meta.corpus != corpus.digest:
        raise CheckpointError(
            f"{newest}: was trained on other text than the recipe's sources hold now; bring that "
            f"text back, or begin another run with --from {folder.root} and another --out"
        )
    check_fits(trainer.decoder, state.model, newest / MODEL)
    trainer.restore(state)


def _start(
    trainer: Trainer,
    recipe: Recipe,
    corpus: Corpus,
    folder: RunFolder,
    view: View,
    origin: Origin | None,
) -> None:
    if folder.recorded() is not None:
        origin = reopened_origin(folder)
        view.log(f"{folder.root} has no checkpoint yet; starting from step 0")
    if origin is not None:
        origin.begin(trainer.decoder)
    if folder.recorded() is not None:
        return
    record = None if origin is None else origin.record.model_dump()
    folder.create(recipe, corpus, record)


def _change(trainer: Trainer, recipe: Recipe, folder: RunFolder, view: View) -> None:
    """Record and log the recipe's changes since the last start; set the trainer's plan of steps."""
    done, before = trainer.steps_done, folder.recorded()
    assert before is not None, "a run's folder holds its recipe by now"
    steps = recipe.train.steps
    if steps != before.train.steps and steps < done:
        raise ConfigError(
            f"train.steps={steps} must be {done} or more: {folder.root} has done as many; to go "
            "back, copy an older checkpoint of it into a folder of its own"
        )
    planned = folder.plan(before)
    if steps != before.train.steps and planned.corrections:
        # A new number of steps in the recipe replaces the number that `TrainingRun.correct` set.
        folder.write_plan(StepPlan(steps))
    lines = folder.change(recipe, done)
    trainer.plan = folder.plan(recipe)
    if lines and done:
        old = before.train.learning_rate(planned.place(done))
        new = recipe.train.learning_rate(trainer.plan.place(done + 1))
        lines.append(f"learning rate: {old:.3g} at step {done}, {new:.3g} at step {done + 1}")
    for line in lines:
        view.log(line)
