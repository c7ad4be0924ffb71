"""`mixtura generate --prompts`: answers many prompts in a batch."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixtura.cli.answers import as_data, note, plural
from mixtura.cli.arguments import at_least_one
from mixtura.cli.failures import INTERRUPTED
from mixtura.cli.opened_model import opened
from mixtura.cli.sampling_options import GivenSampling, ResolvedSampling
from mixtura.cli.verification import checked

if TYPE_CHECKING:
    from mixtura.checkpoints.open_model import DTypeName
    from mixtura.engine.answers_file import AnswersFile
    from mixtura.engine.many_prompts import Request
    from mixtura.engine.model import Model
    from mixtura.engine.prompt_lines import PromptLine


PromptsFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Continue many: one prompt a line, or a JSON object a line with a prompt and "
        "options of its own; '-' reads standard input.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="With --prompts, the file of answers; the same command goes on after an "
        "interruption.  [default: standard output]"
    ),
]
Together = Annotated[
    int,
    typer.Option(
        help="With --prompts, how many are answered at a time; each needs its own cache.",
        callback=at_least_one,
    ),
]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """The options for opening the model, and the options for all answers."""

    model: str
    dtype: "DTypeName | None"
    context: int | None
    kv: Literal["bf16", "int8"] | None
    given: GivenSampling
    stops: tuple[str, ...]
    logprobs: int | None
    verify: bool


@dataclass(frozen=True, slots=True)
class Prompts:
    """The source of the prompts, and the destination of their answers."""

    name: str
    """the path of the file of prompts; '-' for standard input"""
    text: str | None
    """the content of standard input; None for a file"""
    out: Path | None
    together: int
    options: AnswerOptions


@dataclass(slots=True)
class _Tally:
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def answer_all(work: Prompts, *, as_json: bool) -> None:
    """Print each answer when it ends, or write it to `work.out`; then print a line with totals."""
    from mixtura.engine.answers_file import AnswersFile, check_free

    lines, options = _read(work), work.options
    seed = options.given.sampling["seed"]
    if work.out is not None:
        check_free(work.out)
    loaded = opened(options.model, options.dtype, verify=options.verify)
    check = loaded.opened.check
    resolved = options.given.with_defaults(loaded.defaults)
    requests = _requests(lines, work, resolved)
    tally = _Tally()
    with ExitStack() as stack:
        kept = None
        if work.out is not None:
            key: list[Any] = [options.model, options.dtype, options.context, options.kv]
            key += [one.as_data() for one in requests]
            kept = stack.enter_context(AnswersFile(work.out, key, seed))
        try:
            with checked(check, verify=options.verify):
                answers = _answers(work, loaded, lines, requests, kept, tally)
                for answer in check.watch(answers):
                    if kept is None:
                        print(json.dumps(answer), flush=True)
                    else:
                        kept.add(answer["number"], answer)
        except KeyboardInterrupt:
            where = "" if kept is None else f"; they are in {kept.part}, the same command goes on"
            note(f"interrupted after {plural(tally.answers, 'answer')}{where}")
            raise typer.Exit(INTERRUPTED) from None
        if kept is not None:
            kept.finish()
    speed = (
        f"{tally.tokens} tokens in {tally.seconds:.2f} s, {tally.tokens_per_second:.1f} tokens/s"
    )
    note(f"{plural(tally.answers, 'answer')}, {speed}, seed {seed}")
    if as_json:
        out = None if work.out is None else str(work.out)
        totals = {**asdict(tally), "tokens_per_second": tally.tokens_per_second}
        print(json.dumps({**totals, "seed": seed, "out": out}))
    elif work.out is not None:
        print(work.out)


def _read(work: Prompts) -> list["PromptLine"]:
    """Read and check the prompts. DataError or ConfigError names the prompt that is refused."""
    from mixtura.engine.prompt_lines import read_prompts, read_text

    shown = "standard input" if work.name == "-" else work.name
    text = read_text(Path(work.name)) if work.text is None else work.text
    lines = read_prompts(text, shown)
    for number, line in enumerate(lines):
        line.sampling(work.options.given.sampling, f"{shown}: prompt {number}")
    return lines


def _requests(
    lines: Sequence["PromptLine"], work: Prompts, resolved: ResolvedSampling
) -> list["Request"]:
    from mixtura.engine.many_prompts import Request

    seed = work.options.given.sampling["seed"]
    return [
        Request(
            prompt=line.prompt,
            sampling=line.sampling(
                {**resolved.tree, "seed": (seed + number) % 2**63}, f"prompt {number}"
            ),
            max_tokens=line.max_tokens or resolved.max_tokens,
            stops=work.options.stops if line.stops is None else line.stops,
            logprobs=work.options.logprobs if line.logprobs is None else line.logprobs,
            name=f"prompt {number}",
        )
        for number, line in enumerate(lines)
    ]


def _answers(
    work: Prompts,
    loaded: "Model",
    lines: Sequence["PromptLine"],
    requests: Sequence["Request"],
    kept: "AnswersFile | None",
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    """Yield each answer that `kept` does not hold yet, in the order in which the answers end."""
    from mixtura.engine.many_prompts import ManyPrompts
    from mixtura.train import View, choose_view

    left = [n for n in range(len(requests)) if kept is None or n not in kept.done]
    if len(left) < len(requests):
        before = len(requests) - len(left)
        note(f"{plural(before, 'answer')} {'is' if before == 1 else 'are'} kept from before")
    pending = [requests[number] for number in left]
    many = ManyPrompts(
        loaded.decoder,
        loaded.tokenizer,
        pending,
        work.together,
        work.options.context,
        work.options.kv,
    )
    if many.why_in_turn is not None:
        note(f"one prompt at a time: {many.why_in_turn}")
    began = perf_counter()
    # `View()` shows nothing: a progress bar would be drawn across answers that are printed.
    view = View() if kept is None and sys.stdout.isatty() else choose_view()
    with view:
        for place, result in many.run(lambda done, all_: view.preparing("answering", done, all_)):
            tally.answers += 1
            tally.tokens += len(result.tokens)
            tally.seconds = perf_counter() - began
            number = left[place]
            line, one = lines[number], requests[number]
            named = {} if line.id is None else {"id": line.id}
            data = as_data(result, loaded.tokenizer)
            yield {
                "number": number,
                **named,
                "prompt": line.prompt,
                **data,
                **one.sampling.model_dump(),
            }
