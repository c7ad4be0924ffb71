"""Trains a model by a recipe, and writes the run to a folder.

`train(load_recipe(path), out)` trains a whole run; `load_recipe` is in `mixtura.runs`. For a
training loop of your own, `build_trainer(recipe, corpus)` makes a `Trainer`: its `step()` takes one
optimizer step, and its `evaluate()` computes held-out bits per byte. To load the trained decoder,
call `mixtura.checkpoints.loaded_run.load_run(folder)`.
"""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.train.device import choose_device
    from mixtura.train.launch import corpus_cache, opened_run, prepare_corpus, train
    from mixtura.train.live_view import LiveView, choose_view
    from mixtura.train.load_watch import Alarm
    from mixtura.train.origin import Origin, recipe_and_origin
    from mixtura.train.step_report import StepReport
    from mixtura.train.trainer import BatchSource, Trainer
    from mixtura.train.trainer_setup import build_decoder, build_trainer
    from mixtura.train.training_run import Summary, TrainingRun, train_in_turn
    from mixtura.train.view import PlainView, RunFacts, View

__all__ = [
    "Alarm",
    "BatchSource",
    "LiveView",
    "Origin",
    "PlainView",
    "RunFacts",
    "StepReport",
    "Summary",
    "Trainer",
    "TrainingRun",
    "View",
    "build_decoder",
    "build_trainer",
    "choose_device",
    "choose_view",
    "corpus_cache",
    "opened_run",
    "prepare_corpus",
    "recipe_and_origin",
    "train",
    "train_in_turn",
]

_HOMES = {
    "Alarm": "mixtura.train.load_watch",
    "BatchSource": "mixtura.train.trainer",
    "LiveView": "mixtura.train.live_view",
    "Origin": "mixtura.train.origin",
    "PlainView": "mixtura.train.view",
    "TrainingRun": "mixtura.train.training_run",
    "RunFacts": "mixtura.train.view",
    "StepReport": "mixtura.train.step_report",
    "Summary": "mixtura.train.training_run",
    "Trainer": "mixtura.train.trainer",
    "View": "mixtura.train.view",
    "build_decoder": "mixtura.train.trainer_setup",
    "build_trainer": "mixtura.train.trainer_setup",
    "choose_device": "mixtura.train.device",
    "choose_view": "mixtura.train.live_view",
    "corpus_cache": "mixtura.train.launch",
    "opened_run": "mixtura.train.launch",
    "prepare_corpus": "mixtura.train.launch",
    "recipe_and_origin": "mixtura.train.origin",
    "train": "mixtura.train.launch",
    "train_in_turn": "mixtura.train.training_run",
}

# With a visible `__getattr__`, type checkers would accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
