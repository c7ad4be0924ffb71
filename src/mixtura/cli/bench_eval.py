"""`mixtura bench eval`: evaluates a model on tasks."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtura.cli.answers import note, plural
from mixtura.cli.arguments import KV, AsJson, DType, Model, at_least_one, check_model
from mixtura.cli.opened_model import opened
from mixtura.cli.verification import Verify, checked
from mixtura.errors import StorageError

if TYPE_CHECKING:
    from mixtura.bench.evaluation import Evaluation


def evaluate(
    model: Model,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...",
            help="mixtura, for its three offline tasks, or some of mixtura_cloze, mixtura_recall "
            "and mixtura_copy; else tasks of lm-evaluation-harness.",
        ),
    ] = "mixtura",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use so many questions of each task.  [default: all]"),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="Examples before each question.  [default: the task's own]"),
    ] = None,
    task_folder: Annotated[
        Path | None,
        typer.Option(help="A folder of further tasks, as lm-evaluation-harness writes them."),
    ] = None,
    together: Annotated[
        int, typer.Option(help="Read so many texts at a time.", callback=at_least_one)
    ] = 8,
    dtype: DType = None,
    kv: KV = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the results to this file too, as JSON.")
    ] = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on tasks, with standard errors.

    The task name 'mixtura' runs three tasks on text of Python's standard library, without a
    download. mixtura_cloze: choose the last word of a sentence among four words. mixtura_recall:
    repeat a number that was stated before a passage of text. mixtura_copy: complete a passage that
    the text already holds once. Every other name is a task of lm-evaluation-harness. The extra
    'eval' installs the harness, which fetches its data sets from the hub. Texts that begin with
    the same tokens share the computation of that beginning.

    \b
      mixtura bench eval runs/first
      mixtura bench eval SmolLM2-135M-Instruct.Q4_1.gguf --tasks mixtura_cloze --limit 50
      mixtura bench eval ./OLMoE-1B-7B --tasks hellaswag,arc_easy --limit 200 --out olmoe.json
      mixtura bench eval ./OLMoE-1B-7B --tasks mine --task-folder tasks --json
    """
    check_model(model)
    if out is not None and os.path.lexists(out):
        raise StorageError(f"{out}: already exists; remove it or choose another place")
    from mixtura.bench.evaluation import TaskOptions, bench_eval
    from mixtura.train import choose_view

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    options = TaskOptions(names, limit, shots, task_folder, together, kv)
    loaded = opened(model, dtype, verify=verify)
    with checked(loaded.opened.check, verify=verify), choose_view() as view:
        found = bench_eval(loaded.opened, options, progress=view.preparing)
    if out is not None:
        from mixtura.files import atomic_text

        atomic_text(out, json.dumps(found.as_data(), indent=2) + "\n")
    _show(found)
    if as_json:
        print(json.dumps(found.as_data()))


def _show(found: "Evaluation") -> None:
    wide = max((len(row.task) for row in found.rows), default=4)
    metrics = max((len(row.metric) for row in found.rows), default=6)
    print(f"{'task':<{wide}}  {'metric':<{metrics}}     value     error  questions")
    for row in found.rows:
        error = "" if row.error is None else f"{row.error:.4f}"
        count = "" if row.questions is None else str(row.questions)
        print(
            f"{row.task:<{wide}}  {row.metric:<{metrics}}  {row.value:8.4f}  {error:>8}  {count:>9}"
        )
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    note(f"{found.model}, weights {found.digest[:16]}, {versions}")
    note(f"{plural(len(found.rows), 'number')} in {found.seconds:.1f} s")
