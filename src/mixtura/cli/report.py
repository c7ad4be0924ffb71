"""`mixtura report`: writes one HTML page about a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtura.cli.arguments import AsJson, Run, check_run

if TYPE_CHECKING:
    from mixtura.insight import Subject


def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="The file to write.  [default: report.html in RUN]")
    ] = None,
    twin: Annotated[
        Path | None,
        typer.Option(help="The dense twin's folder.  [default: 'dense' beside RUN, if it fits]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about a run.

    The page works without a network. It shows the loss of the run and of its dense twin, the load
    of each expert over time, starving experts, collapsed layers, and the kind of text that each
    expert computes. A run that is still in progress is shown up to its newest step.

    \b
      mixtura report runs/first
      mixtura report runs/first --twin runs/first-dense --out first.html --json
    """
    check_run(run)
    from mixtura.insight import write_report

    page = write_report(run, out or run / "report.html", twin, subject=_open)
    print(json.dumps({"report": str(page)}) if as_json else page)


def _open(run: Path) -> "Subject":
    """Load the model of a run's newest checkpoint, and the corpus that the run trains on."""
    from mixtura.checkpoints.loaded_run import load_run
    from mixtura.data import prepare
    from mixtura.insight import Subject
    from mixtura.train import choose_view, corpus_cache

    loaded = load_run(run)
    with choose_view() as view:
        corpus = prepare(loaded.recipe.data, corpus_cache(), view.preparing, loaded.tokenizer)
    return Subject(loaded.decoder, corpus, loaded.step)
