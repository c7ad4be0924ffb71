"""Training: a recipe in, a run's folder out.

`train(load_recipe(path), out)` does it all. `Trainer` is the step alone, for whoever brings
another loop: `build_trainer(recipe, corpus)`, then `.step()` and `.evaluate()`. `load_run(folder)`
gives the trained decoder back.
"""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.train.building import build_decoder, build_trainer
    from mixtura.train.changes import ChangedKeys
    from mixtura.train.config import TrainConfig
    from mixtura.train.device import choose_device
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

_HOMES = {
    "Alarm": "mixtura.train.load_watch",
    "BatchSource": "mixtura.train.trainer",
    "ChangedKeys": "mixtura.train.changes",
    "LiveView": "mixtura.train.live",
    "LoadedRun": "mixtura.train.loading",
    "Origin": "mixtura.train.origin",
    "PlainView": "mixtura.train.view",
    "Recipe": "mixtura.train.recipe",
    "Run": "mixtura.train.run",
    "RunFacts": "mixtura.train.view",
    "RunFolder": "mixtura.train.run_folder",
    "StepReport": "mixtura.train.step_report",
    "Summary": "mixtura.train.run",
    "TrainConfig": "mixtura.train.config",
    "Trainer": "mixtura.train.trainer",
    "TrainerState": "mixtura.train.trainer",
    "View": "mixtura.train.view",
    "build_decoder": "mixtura.train.building",
    "build_trainer": "mixtura.train.building",
    "choose_device": "mixtura.train.device",
    "choose_view": "mixtura.train.live",
    "corpus_cache": "mixtura.train.launch",
    "load_recipe": "mixtura.train.recipe",
    "load_run": "mixtura.train.loading",
    "opened_run": "mixtura.train.launch",
    "prepare_corpus": "mixtura.train.launch",
    "read_journal": "mixtura.train.journal",
    "recipe_and_origin": "mixtura.train.origin",
    "train": "mixtura.train.launch",
    "train_in_turn": "mixtura.train.run",
}

# Hidden from type checkers, which would take any misspelt name for one that exists.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
