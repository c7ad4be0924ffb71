"""Arguments and options that several commands share, and the checks of RUN and MODEL."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixtura.checkpoints.hub import is_hub_id
from mixtura.checkpoints.pulled_models import NAMED, is_named, pulled_path
from mixtura.cli import completion
from mixtura.errors import CheckpointError


def at_least_one(given: int | None) -> int | None:
    if given is not None and given < 1:
        raise typer.BadParameter(f"{given} must be 1 or more")
    return given


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that 'mixtura train' wrote.")]
MODEL_HELP = (
    "A run's folder, a packed folder, a Hugging Face folder, a GGUF file, a pulled model's name "
    "('mixtura models'), or a hub id (OWNER/NAME)."
)
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=MODEL_HELP,
        autocompletion=completion.models,
    ),
]
DType = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Compute in this, from a GGUF file's own numbers.  [default: as weights are stored; a "
        "quantised GGUF file is packed once and runs from that]"
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Make the last line of the output one JSON object.")
]
KV = Annotated[
    Literal["bf16", "int8"] | None,
    typer.Option(
        help="How keys and values are kept; int8 takes half the memory of bf16.  "
        "[default: bf16 for a packed model, else as the model computes]"
    ),
]


def check_run(run: Path) -> None:
    """Raise CheckpointError if RUN is not a folder; the check does not need torch."""
    if not run.is_dir():
        raise CheckpointError(
            f"{run}: no such run folder; give the folder that 'mixtura train' wrote"
        )


def check_model(model: str) -> None:
    """Raise CheckpointError if MODEL does not exist; the check does not need torch."""
    if is_named(model):
        pulled_path(model)
    elif not Path(model).exists() and not is_hub_id(model):
        near = difflib.get_close_matches(model, NAMED, n=1)
        hint = f"; the nearest name is {near[0]}" if near else ""
        raise CheckpointError(
            f"{model}: no such file or folder{hint}; give a run's folder, a packed folder, a "
            "Hugging Face folder, a GGUF file, a hub id (OWNER/NAME), or a name of 'mixtura models'"
        )
