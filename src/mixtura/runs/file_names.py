"""Names of files in a run's folder that others than the run look for."""

from pathlib import Path

RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file()
