"""Training: a recipe in, a run's folder out.

`train(load_recipe(path), out)` does it all. `Trainer` is the step alone, for whoever brings
another loop: `build_trainer(recipe, corpus)`, then `.step()` and `.evaluate()`. `load_run(folder)`
gives the trained decoder back.
"""

from mixtura.train.building import build_decoder, build_trainer
from mixtura.train.changes import ChangedKeys
from mixtura.train.config import TrainConfig, choose_device
from mixtura.train.journal import read_journal
from mixtura.train.launch import corpus_cache, opened_run, prepare_corpus, train
from mixtura.train.live import LiveView, choose_view
from mixtura.train.load_watch import Alarm
from mixtura.train.loading import LoadedRun, load_run
from mixtura.train.origin import Origin, recipe_and_origin
from mixtura.train.recipe import Recipe, load_recipe
from mixtura.train.run import Run, Summary, train_in_turn
from mixtura.train.run_folder import RunFolder
from mixtura.train.step_report import StepReport
from mixtura.train.trainer import BatchSource, Trainer, TrainerState
from mixtura.train.view import PlainView, RunFacts, View

__all__ = [
    "Alarm",
    "BatchSource",
    "ChangedKeys",
    "LiveView",
    "LoadedRun",
    "Origin",
    "PlainView",
    "Recipe",
    "Run",
    "RunFacts",
    "RunFolder",
    "StepReport",
    "Summary",
    "TrainConfig",
    "Trainer",
    "TrainerState",
    "View",
    "build_decoder",
    "build_trainer",
    "choose_device",
    "choose_view",
    "corpus_cache",
    "load_recipe",
    "load_run",
    "opened_run",
    "prepare_corpus",
    "read_journal",
    "recipe_and_origin",
    "train",
    "train_in_turn",
]
