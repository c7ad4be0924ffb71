"""`mixtura generate`: continues one prompt, or many."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixtura.cli.answers import as_data, listen, note, show, summary
from mixtura.cli.arguments import KV, AsJson, DType, Model, check_model
from mixtura.cli.failures import INTERRUPTED
from mixtura.cli.opened_model import opened
from mixtura.cli.prompts import AnswerOptions, Out, Prompts, PromptsFile, Together, answer_all
from mixtura.cli.sampling_options import (
    CountOfLogprobs,
    FrequencyPenalty,
    LogitBias,
    MaxTokens,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    checked_stops,
    given_sampling,
)
from mixtura.cli.verification import Verify, checked
from mixtura.errors import ConfigError, DataError


def generate(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text to continue; '-' reads it from standard input, '' begins a document.  "
            "[default: '']"
        ),
    ] = None,
    prompts: PromptsFile = None,
    out: Out = None,
    together: Together = 16,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    presence_penalty: PresencePenalty = None,
    logit_bias: LogitBias = None,
    logprobs: CountOfLogprobs = None,
    seed: Seed = None,
    dtype: DType = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Positions to keep, prompt and answer.  [default: as many as --max-tokens needs]"
        ),
    ] = None,
    kv: KV = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Continue one prompt as streamed text, or many prompts as JSON lines.

    The model's text goes to standard output. A line on stderr gives the number of tokens, the time
    to the first token, the speed of the others, the reason of the end, and the seed, with which the
    same text can be generated again. The text ends where the model ends its document, before a
    --stop text, after --max-tokens, or when the context is full.

    If the model has a generation_config.json, options that you leave out take their values from
    this file, and a line on stderr lists these values. Each logit is changed in this order: the
    bias is added, the penalties are applied, and the result is divided by the temperature. Then
    top-k, top-p and min-p exclude tokens. Log probabilities are those of the model, before all of
    these changes.

    With --prompts each answer is one line with a JSON object. Standard output gets an answer as
    soon as it ends; the file --out has the answers in the order of the prompts. A JSON line of the
    prompts may have the keys prompt, id, max_tokens, stop, logprobs, temperature, top_k, top_p,
    min_p, repetition_penalty, frequency_penalty, presence_penalty, logit_bias and seed. Prompt n,
    counted from 0, has the seed '--seed plus n' unless its line has a seed.

    \b
      mixtura generate runs/first --prompt "def main():"
      mixtura generate runs/first --prompt "import " --temperature 0 --max-tokens 64
      mixtura generate runs/first --prompt "x = [" --stop "]" --logprobs 3 --json
      head -c 200 story.txt | mixtura generate runs/first --prompt - --seed 7 --json
      mixtura generate runs/first --prompts questions.jsonl --out answers.jsonl
    """
    if seed is None and out is not None:
        from mixtura.engine.answers_file import kept_seed

        seed = kept_seed(out)
    given = given_sampling(
        max_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        seed,
    )
    options = AnswerOptions(model, dtype, context, kv, given, checked_stops(stop), logprobs, verify)
    _check_together(prompt, prompts, out, logprobs, as_json=as_json)
    check_model(model)
    if prompts is None:
        text = _standard_input() if prompt == "-" else prompt or ""
        _continue(text, options, as_json=as_json)
    else:
        given_text = _standard_input() if prompts == "-" else None
        answer_all(Prompts(prompts, given_text, out, together, options), as_json=as_json)


def _continue(text: str, options: AnswerOptions, *, as_json: bool) -> None:
    model = opened(options.model, options.dtype, verify=options.verify)
    check = model.opened.check
    resolved = options.given.with_defaults(model.defaults)
    with checked(check, verify=options.verify):
        stream = model.stream(
            text,
            resolved.max_tokens,
            stop=options.stops,
            context=options.context,
            kv=options.kv,
            logprobs=options.logprobs,
            sampling=resolved.sampling,
        )
        (listen if as_json else show)(check.watch(stream))
        if stream.result.finish == "interrupted":
            check.stop()
    if as_json:
        data = as_data(stream.result, model.tokenizer)
        print(json.dumps({"prompt": text, **data, **resolved.sampling.model_dump()}))
    else:
        note(f"{summary(stream.result)}, seed {resolved.sampling.seed}")
    if stream.result.finish == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _check_together(
    prompt: str | None,
    prompts: str | None,
    out: Path | None,
    logprobs: int | None,
    *,
    as_json: bool,
) -> None:
    """Raise ConfigError for options that contradict each other."""
    if prompt is not None and prompts is not None:
        raise ConfigError("--prompt and --prompts exclude each other; put the one into the file")
    if out is not None and prompts is None:
        raise ConfigError(f"--out {out} goes with --prompts; of one prompt redirect the output")
    if logprobs is not None and prompts is None and not as_json:
        raise ConfigError(f"--logprobs {logprobs} shows in JSON alone; add --json")


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input: byte {error.start} is no UTF-8 text ({error.reason}); "
            "convert it, as with iconv -t utf-8"
        ) from error
