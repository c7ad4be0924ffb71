"""A training run on disk: its recipe, its folder, its journals and its checkpoints.

All code that reads or writes runs uses this package:

    recipe = load_recipe(Path("recipes/stdlib-bytes.yaml"), ["train.steps=100"])
    folder = RunFolder(Path("runs/first"))
    folder.recorded(), read_journal(folder.log), folder.checkpoints().newest()
"""

from typing import TYPE_CHECKING

from mixtura.lazy_names import at_first_use

if TYPE_CHECKING:
    from mixtura.runs.changes import ChangedKeys
    from mixtura.runs.checkpoint import TrainerState
    from mixtura.runs.folder import RunFolder
    from mixtura.runs.journal import read_journal
    from mixtura.runs.recipe import Recipe, load_recipe
    from mixtura.runs.train_config import TrainConfig

__all__ = [
    "ChangedKeys",
    "Recipe",
    "RunFolder",
    "TrainConfig",
    "TrainerState",
    "load_recipe",
    "read_journal",
]

_HOMES = {
    "ChangedKeys": "mixtura.runs.changes",
    "Recipe": "mixtura.runs.recipe",
    "RunFolder": "mixtura.runs.folder",
    "TrainConfig": "mixtura.runs.train_config",
    "TrainerState": "mixtura.runs.checkpoint",
    "load_recipe": "mixtura.runs.recipe",
    "read_journal": "mixtura.runs.journal",
}

# With a visible `__getattr__`, type checkers would accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = at_first_use(__name__, _HOMES)
