"""`mixtura train`: trains a model by a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mixtura.cli import completion
from mixtura.cli.answers import plural
from mixtura.cli.arguments import AsJson
from mixtura.cli.failures import INTERRUPTED
from mixtura.config import read_yaml, with_overrides
from mixtura.errors import ConfigError


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or the name of a recipe in Mixtura.",
            autocompletion=completion.recipes,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder.  [default: runs/ and the recipe's name]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in this folder stopped.")
    ] = False,
    from_model: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Begin with the weights, the shape and the tokenizer of a run, a Hugging Face "
            "folder, a GGUF file, a pulled model's name, or a hub id.",
            autocompletion=completion.models,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model by a recipe.

    A recipe has the sections 'model', 'data' and 'train'. --set sets any key of the recipe by its
    dotted name. For an unknown key, the error names the nearest known key. Progress goes to stderr.

    After Ctrl-C the current step is finished, a checkpoint is saved, and the exit status is 130.
    --resume continues from that checkpoint, and takes the same steps as an uninterrupted run. A
    folder that holds a different run is never changed.

    A resumed run may have other values of train.steps, train.lr, train.schedule and similar keys:
    give them with --set beside --resume. The file changes.jsonl in the run's folder records each
    change. Another text, batch or model needs a new run: --from begins it with the weights of an
    existing model. With --from the recipe needs neither the section 'model' nor data.tokenizer.

    \b
      mixtura train stdlib-bytes
      mixtura train recipes/stdlib-bytes.yaml --out runs/first
      mixtura train recipes/stdlib-bytes.yaml --set name=wide --set model.width=256
      mixtura train recipes/stdlib-bytes.yaml --out runs/first --resume --json
      mixtura train recipes/stdlib-bytes.yaml --out runs/first --resume --set train.steps=4000
      mixtura train mine.yaml --from runs/first --out runs/mine
    """
    # The recipe is read before torch is loaded, so that an error in it is shown at once.
    tree = with_overrides(read_yaml(recipe), overrides or ())
    from mixtura.runs import ChangedKeys, Recipe, RunFolder
    from mixtura.train import choose_view, recipe_and_origin
    from mixtura.train import train as train_recipe

    folder = out or _own_folder(str(tree.get("name", Recipe.model_fields["name"].default)))
    parsed, origin = recipe_and_origin(
        tree, RunFolder(folder), from_model, resume=resume, place=str(recipe)
    )
    summary = train_recipe(
        parsed,
        folder,
        resume=resume,
        view=choose_view(),
        changed=ChangedKeys.set_by(overrides or ()),
        origin=origin,
    )
    if as_json:
        print(json.dumps(summary.tree()))
    elif not summary.interrupted:
        quality = summary.heldout_bits_per_byte
        print(
            f"{folder}: {plural(summary.steps, 'step')}, {summary.tokens:,} tokens, "
            + ("" if quality is None else f"held-out {quality:.4f} bits per byte")
        )
        print(f'next: mixtura generate {folder} --prompt "..."; mixtura report {folder}')
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)


def _own_folder(name: str) -> Path:
    """Return the folder `name` in runs/. Raises ConfigError if it is not directly in runs/."""
    if name in {"", ".", ".."} or "/" in name or not name.isprintable():
        raise ConfigError(
            f"name={name!r:.60} is not the name of a folder; choose another, or a folder with --out"
        )
    return Path("runs") / name
