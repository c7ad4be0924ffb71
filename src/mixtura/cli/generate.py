"""`mixtura generate`: continue a prompt, or many."""

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
    """Continue a prompt with a trained model, streaming; or many, as JSON lines.

    The model's text goes to standard output, and a line about it to stderr: how many tokens, when
    the first one came, how fast the others did, why it ended, and the seed that gives the same text
    again. It ends where the model ends its document, before a --stop, after --max-tokens, or where
    the context is full.

    Options that you leave out are the model's own where it came with a generation_config.json, and
    a line says which. In this order: the bias is added, penalties are taken off, the temperature
    divides, then top-k, top-p and min-p leave tokens out. Log probabilities are the model's own,
    before any of these.

    With --prompts each answer is one JSON object a line, as it ends, or in the order of the prompts
    in --out. A line of the file may state: prompt, id, max_tokens, stop, logprobs, temperature,
    top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, logit_bias, seed.
    The seed of prompt n, from 0 on, is --seed and n where its line states none.

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
    """Raises ConfigError for options that contradict each other."""
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
