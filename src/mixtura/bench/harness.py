"""Runs lm-evaluation-harness on Mixtura's engine; no other module imports `lm_eval`."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mixtura.bench.evaluation import Measured, TaskOptions
from mixtura.bench.likelihoods import Continued, Likelihoods
from mixtura.bench.offline_tasks import GROUP, TASKS
from mixtura.checkpoints.open_model import OpenModel
from mixtura.engine.many_prompts import ManyPrompts, Request
from mixtura.engine.sampling import Sampling
from mixtura.errors import ConfigError, DataError, MixturaError
from mixtura.progress import Progress
from mixtura.tokenizers import CheckpointTokenizer

VERSION = version("lm_eval")
_MAX_TOKENS = 256
_STDERR = "_stderr"


class EngineLM(TemplateLM):
    """The harness's interface to a model: log probabilities, rolling windows, and answers."""

    def __init__(self, opened: OpenModel, options: TaskOptions, progress: Progress) -> None:
        super().__init__()
        self._opened, self._options, self._progress = opened, options, progress
        self._likelihoods = Likelihoods(opened.decoder, options.together, options.kv)

    @property
    def eot_token_id(self) -> int:
        return self._opened.tokenizer.end_of_document

    @property
    def prefix_token_id(self) -> int:
        """The token in place of an empty context: bos_token, or else the end-of-document token."""
        tokenizer = self._opened.tokenizer
        if tokenizer.begin:
            return tokenizer.begin[0]
        if isinstance(tokenizer, CheckpointTokenizer) and "bos_token" in tokenizer.facts.names:
            return tokenizer.special.get(tokenizer.facts.names["bos_token"], self.eot_token_id)
        return self.eot_token_id

    @property
    def max_length(self) -> int:
        return self._likelihoods.longest

    def tok_encode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, string: str, add_special_tokens: bool | None = None
    ) -> list[int]:
        tokenizer = self._opened.tokenizer
        begin = () if add_special_tokens is False else tokenizer.begin
        return [*begin, *tokenizer.encode(string)]

    def _loglikelihood_tokens(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
    ) -> list[tuple[float, bool]]:
        pairs = [Continued(tuple(context), tuple(after)) for _, context, after in requests]
        progress = partial(self._progress, "log probabilities")
        return [(one.nats, one.greedy) for one in self._likelihoods.of(pairs, progress)]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        pairs: list[Continued] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [make_disjoint_window(window) for window in windows]
            pairs += [Continued(tuple(context), tuple(after)) for context, after in own]
            counts.append(len(own))
        found = iter(self._likelihoods.of(pairs, partial(self._progress, "rolling windows")))
        return [sum(next(found).nats for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = [self._request(*request.args) for request in requests]
        opened, options = self._opened, self._options
        many = ManyPrompts(
            opened.decoder, opened.tokenizer, prompts, options.together, None, options.kv
        )
        answers = [""] * len(requests)
        for number, result in many.run(partial(self._progress, "answers")):
            answers[number] = result.text
        return answers

    def _request(self, context: str, settings: Mapping[str, Any]) -> Request:
        given = {key: value for key, value in settings.items() if value is not None}
        stops = given.pop("until", [])
        most = int(given.pop("max_gen_toks", _MAX_TOKENS))
        samples = bool(given.pop("do_sample", False))
        own = {key: given.pop(key) for key in ("temperature", "top_p", "top_k") if key in given}
        if given:
            raise ConfigError(
                f"a task sets {', '.join(given)}, which generation here lacks; known are "
                "until, max_gen_toks, do_sample, temperature, top_p and top_k"
            )
        sampling = Sampling.parse({**own, "seed": 0} if samples else {"temperature": 0.0})
        most = min(most, self.max_length - 1)
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        prompt = self._shortened(context, self.max_length - most)
        return Request(prompt, sampling, most, stops, name="a task's context")

    def _shortened(self, text: str, room: int) -> str:
        """A text cut at its beginning, so that it has at most `room` tokens."""
        tokens, keep = self.tok_encode(text), room
        while len(tokens) > room:
            text = self._opened.tokenizer.decode(tokens[-keep:])
            # The cut text may be encoded to one more token, so the next pass keeps one token less.
            tokens, keep = self.tok_encode(text), keep - 1
        return text


class HarnessTasks:
    """Tasks of the harness, by name.

    Raises ConfigError for a name that is not in the harness, with the nearest names.
    """

    def __init__(self, names: Sequence[str], folder: Path | None) -> None:
        self._names = names
        self._manager = _manager_of(names, folder)
        for name in names:
            if not self._manager.match_tasks([name]):
                raise ConfigError(_unknown(name, self._manager.all_tasks))

    def run(self, opened: OpenModel, options: TaskOptions, progress: Progress) -> list[Measured]:
        """Run the tasks. Raises DataError if the harness fails, for example to fetch data."""
        # A decorator hides the parameters of simple_evaluate from type checkers.
        run: Any = simple_evaluate
        model = EngineLM(opened, options, progress)
        try:
            found = run(
                model=model,
                tasks=self._manager.match_tasks(list(self._names)),
                num_fewshot=options.shots,
                limit=options.limit,
                task_manager=self._manager,
                log_samples=False,
                bootstrap_iters=1000,
            )
        except MixturaError:
            raise
        # Data sets and metrics of the harness come from many packages with errors of all kinds.
        except Exception as error:
            raise DataError(
                f"the tasks {', '.join(self._names)} cannot be run ({type(error).__name__}: "
                f"{error!s:.200}); their data sets come from the hub, where it is reached"
            ) from error
        assert found is not None, "one process has all results"
        return list(_rows(found))


def _manager_of(names: Sequence[str], folder: Path | None) -> TaskManager:
    """A manager of the tasks in `folder` and, if `names` needs them, of the harness's own tasks.

    The harness takes seconds to read its own tasks.
    """
    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if all(own.match_tasks([name]) for name in names):
            return own
    return TaskManager(include_path=None if folder is None else str(folder))


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}; " if near else ""
    return (
        f"no task {name!r}; {hint}there are {GROUP}, {', '.join(TASKS)}, and {len(known)} of "
        f"lm-evaluation-harness {VERSION}, which 'lm_eval ls tasks' lists"
    )


def _rows(found: Mapping[str, Any]) -> Iterator[Measured]:
    """The harness's results as rows.

    The keys of the harness's results are `metric,filter` and `metric_stderr,filter`.
    """
    counts = found.get("n-samples", {})
    for task, numbers in found["results"].items():
        questions = counts.get(task, {}).get("effective")
        for key, value in numbers.items():
            metric, comma, rule = key.partition(",")
            if not comma or metric.endswith(_STDERR) or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}{_STDERR},{rule}")
            known = float(error) if isinstance(error, int | float) else None
            name = metric if rule == "none" else f"{metric} ({rule})"
            yield Measured(task, name, float(value), known, questions)
