"""Runs tasks of lm-evaluation-harness and offline tasks; gives results with standard errors."""

import hashlib
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mixtura import __version__
from mixtura.bench.likelihoods import Continued, Likelihoods
from mixtura.bench.offline_tasks import GROUP, TASKS, OfflineTask
from mixtura.checkpoints.hub import folder_of
from mixtura.checkpoints.model_kind import what_is
from mixtura.checkpoints.open_model import OpenModel
from mixtura.engine.cache_plan import KVKind
from mixtura.errors import ConfigError
from mixtura.integrity import digest_of_bytes
from mixtura.models import LanguageModel
from mixtura.progress import Progress, silent
from mixtura.runs.folder import RunFolder
from mixtura.tokenizers import Tokenizer

EXTRA = "lm-evaluation-harness is not installed; pip install 'mixtura[eval]' brings its tasks"
_WEIGHTS = {".safetensors", ".gguf", ".mixtura"}


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The tasks to run, and the options of the run."""

    names: tuple[str, ...]
    limit: int | None = None
    """the most questions of each task; None: all"""
    shots: int | None = None
    """examples before each question of a task of the harness; None: the task's own number"""
    folder: Path | None = None
    """a folder of YAML files that define further tasks for the harness"""
    together: int = 8
    """the number of texts that are read at the same time"""
    kv: KVKind | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The value of one metric in one task."""

    task: str
    metric: str
    value: float
    error: float | None
    """the standard error over questions; None if the task gives no standard error"""
    questions: int | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of all tasks, the model, and the versions of the packages that were used."""

    model: str
    digest: str
    """SHA-256 of the files that hold the model's weights"""
    limit: int | None
    shots: int | None
    rows: tuple[Measured, ...]
    versions: dict[str, str]
    seconds: float

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def bench_eval(opened: OpenModel, options: TaskOptions, progress: Progress = silent) -> Evaluation:
    """Run the tasks that `options` names.

    A name is one of the offline `TASKS`, or `mixtura` for all offline tasks, or a task's name in
    the harness. Raises ConfigError for an unknown task, with the nearest names, and for a task that
    the model cannot run. Raises DataError for a data set that cannot be fetched.
    """
    began = perf_counter()
    offline, others = _split_names(options.names)
    versions = {"mixtura": __version__, "torch": str(torch.__version__)}
    versions["python"] = platform.python_version()
    rows: list[Measured] = []
    harness = _harness(others) if others else None
    further = None if harness is None else harness.HarnessTasks(others, options.folder)
    for task in offline:
        rows.append(_answered(opened.decoder, opened.tokenizer, task, options, progress))
    if harness is not None and further is not None:
        versions["lm_eval"] = harness.VERSION
        rows += further.run(opened, options, progress)
    return Evaluation(
        opened.title,
        digest_of_weights(folder_of(opened.name)),
        options.limit,
        options.shots,
        tuple(rows),
        versions,
        perf_counter() - began,
    )


def continued(tokenizer: Tokenizer, context: str, continuation: str) -> Continued:
    """The tokens of context and continuation, which are encoded together as one text.

    As in the harness, the continuation begins after as many tokens as the context has when it is
    encoded by itself.
    """
    begin = list(tokenizer.begin) or [tokenizer.end_of_document]
    before = [*begin, *tokenizer.encode(context)]
    whole = [*begin, *tokenizer.encode(context + continuation)]
    return Continued(tuple(before), tuple(whole[len(before) :]))


def digest_of_weights(path: Path) -> str:
    """SHA-256 over the digests of all weight files; for a run, those of its newest checkpoint."""
    if what_is(path) == "run":
        path = RunFolder(path).checkpoints().newest() or path
    files = [path] if path.is_file() else sorted(path.iterdir())
    digest = hashlib.sha256()
    for file in files:
        if file.suffix in _WEIGHTS:
            digest.update(digest_of_bytes(file, 0, file.stat().st_size).encode())
    return digest.hexdigest()


def _split_names(names: Sequence[str]) -> tuple[list[OfflineTask], list[str]]:
    if not names:
        raise ConfigError(f"no task is named; give some, such as {GROUP}")
    offline: dict[str, OfflineTask] = {}
    for name in names:
        if name == GROUP:
            offline |= TASKS
        elif name in TASKS:
            offline[name] = TASKS[name]
    return list(offline.values()), [n for n in dict.fromkeys(names) if n not in {GROUP, *TASKS}]


def _harness(names: Sequence[str]) -> Any:
    """The module `mixtura.bench.harness`. Raises ConfigError if the harness is not installed."""
    try:
        from mixtura.bench import harness
    except ImportError as error:
        raise ConfigError(
            f"no task {names[0]!r} among {', '.join((GROUP, *TASKS))}, and {EXTRA}"
        ) from error
    return harness


def _answered(
    model: LanguageModel,
    tokenizer: Tokenizer,
    task: OfflineTask,
    options: TaskOptions,
    progress: Progress,
) -> Measured:
    questions = task.questions()[: options.limit]
    requests = [
        continued(tokenizer, one.context, choice) for one in questions for choice in one.choices
    ]
    likelihoods = Likelihoods(model, options.together, options.kv)
    found = likelihoods.of(requests, partial(progress, task.name))
    right, at = 0, 0
    for one in questions:
        own = found[at : at + len(one.choices)]
        at += len(own)
        if task.measure == "likeliest choice":
            # A tie counts as wrong: otherwise a model that finds all choices equally likely would
            # always be right.
            right += own[0].nats > max(other.nats for other in own[1:])
        else:
            right += own[0].greedy
    share = right / len(questions)
    error = math.sqrt(share * (1 - share) / (len(questions) - 1)) if len(questions) > 1 else None
    return Measured(task.name, "accuracy", share, error, len(questions))
