"""Writes a report about a run as one self-contained HTML page."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixtura.errors import DataError, reading
from mixtura.files import atomic_text
from mixtura.insight.overview import overview
from mixtura.insight.page import render
from mixtura.insight.recorded_run import RecordedRun, find_twin
from mixtura.insight.texts import Subject, texts
from mixtura.models import DecoderConfig, ModelConfig
from mixtura.models.historic import LstmMoEConfig
from mixtura.progress import Progress, silent

Tree = dict[str, Any]


def write_report(
    run: Path,
    out: Path,
    twin: Path | None = None,
    *,
    subject: Callable[[Path], Subject],
    progress: Progress = silent,
) -> Path:
    """Write the page about the run in folder `run` to the file `out`, and return `out`.

    `twin` is the dense twin's folder. None selects the folder `dense` beside `run`, if it holds a
    run on the same corpus. For a run with MoE layers, `subject` opens its newest checkpoint and its
    corpus, and `progress` is called while the model reads text. A run in progress is shown up to
    its last log line. Raises CheckpointError if the run or its checkpoint is missing, DataError for
    a damaged log or a twin on other text, and StorageError if `out` cannot be written.
    """
    # No check foresees every error from a damaged run, or from a run of an earlier version.
    # `reading` makes a MixturaError of those that are left.
    with reading(run):
        data = report_data(run, twin, subject, progress)
    experts = data["text"]["experts"] if data["text"] else 0
    atomic_text(out, render(data, f"{data['name']} · Mixtura", experts))
    return out


def report_data(
    run: Path,
    twin: Path | None,
    subject: Callable[[Path], Subject],
    progress: Progress = silent,
) -> Tree:
    """The page's content as plain data."""
    moe_run = RecordedRun.read(run)
    twin_run = _twin(moe_run, twin)
    opened = subject(run) if moe_run.moe_layers else None
    tree: Tree = {
        "name": moe_run.name,
        "subtitle": _subtitle(moe_run),
        **overview(moe_run, twin_run),
        "text": None,
        "domains": None,
        "definitions": _DEFINITIONS,
        "written": f"Written by Mixtura {version('mixtura')}. This file needs no network.",
    }
    if opened is not None:
        tree["text"], tree["domains"] = texts(opened, moe_run.length, progress)
        tree["text"]["lead"] = _text_lead(moe_run, opened)
        tree["domains"]["lead"] = _domains_lead(tree["domains"])
    return tree


def _twin(run: RecordedRun, folder: Path | None) -> RecordedRun | None:
    if folder is None:
        found = find_twin(run)
        return None if found is None else RecordedRun.read(found)
    twin = RecordedRun.read(folder)
    if twin.corpus != run.corpus:
        raise DataError(
            f"{folder}: was trained on other text than {run.folder}, so their bits per byte cannot "
            "be compared; give a twin with the same `data` section"
        )
    return twin


def _subtitle(run: RecordedRun) -> str:
    model = run.model
    parts = [*_described(model), *_experts(model)]
    parts.append(f"trained on {_SOURCES.get(run.source, run.source)}")
    parts.append(
        f"all {run.steps:,} steps done"
        if run.done >= run.steps
        else f"{run.done:,} of {run.steps:,} steps done"
    )
    return " · ".join(parts)


def _described(model: ModelConfig) -> list[str]:
    match model:
        case LstmMoEConfig():
            return [f"an LSTM on either side of a layer of width {model.width}"]
        case DecoderConfig():
            return [f"{model.layers} layers of width {model.width}"]


def _experts(model: ModelConfig) -> list[str]:
    """Words for the number of experts and for the layers that have them.

    In a pyramid, layers have different numbers of experts.
    """
    if model.moe is None:
        return ["dense"]
    counts = sorted({shape.num_experts for shape in model.moe_shapes.values()})
    several = isinstance(model, DecoderConfig)
    everywhere = several and len(model.moe_shapes) == model.layers
    where = " in each layer" if everywhere else f" in {len(model.moe_shapes)} of them"
    experts = f"{' or '.join(map(str, counts))} experts{where if several else ''}"
    return [f"{experts}, {model.moe.top_k} for each token"]


_SOURCES = {
    "stdlib": "Python's standard library",
    "text": "text files",
    "huggingface": "a data set of the Hugging Face hub",
}


def _text_lead(run: RecordedRun, subject: Subject) -> str:
    lead = (
        f"Held-out text after step {subject.step:,}, each token in the colour of its first expert. "
        "Hover for the router's probabilities; click an expert to see its tokens alone."
    )
    if run.corpus not in (None, subject.corpus.digest):
        lead += (
            " The corpus has changed since this run was trained: some of this may be text that it "
            "was trained on."
        )
    return lead


def _domains_lead(domains: Tree) -> str:
    return (
        f"How often each expert is first for a domain, against how often it is first at all, over "
        f"{sum(domains['tokens']):,} held-out tokens. Knowing the domain outright would be "
        f"{domains['entropy']:.2f} bits."
    )


_DEFINITIONS = [
    (
        "Bits per byte",
        "Bits that the model needs for a byte of held-out text, whatever its tokens are.",
    ),
    (
        "Active parameters",
        "Weights that one token uses, embedding and head included (convention A).",
    ),
    (
        "FLOPs a token",
        "Forward pass, a multiply-add as 2, attention over a training sequence's length.",
    ),
    (
        "Load",
        "Rows that chose an expert, before any capacity. Even is 1; under 0.1 an expert starves.",
    ),
    (
        "Tokens a second",
        "Median over the log, of training alone, without evaluations and checkpoints.",
    ),
    (
        "Bits about the domain",
        "Mutual information of a token's first expert and its domain; 0 if experts do not differ.",
    ),
    (
        "Telling tokens",
        "Those that reach an expert most often beyond what even routing would bring there.",
    ),
    (
        "Colours of ratios",
        "By their logarithm, from a quarter of even to four times; what is beyond looks the same.",
    ),
]
