"""`mixtura generate`: continue a prompt."""

import json
import sys
from typing import Annotated

import typer

from mixtura.cli.answers import as_data, listen, note, show, summary
from mixtura.cli.arguments import (
    DEFAULT,
    KV,
    AsJson,
    DType,
    MaxTokens,
    Model,
    Seed,
    Temperature,
    TopK,
    TopP,
    check_model,
    sampling_of,
)
from mixtura.cli.failures import INTERRUPTED
from mixtura.cli.verification import Verify, checked
from mixtura.errors import DataError


def generate(
    model: Model,
    prompt: Annotated[
        str,
        typer.Option(
            help="Text to continue; '-' reads it from standard input, '' begins a document."
        ),
    ] = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = DEFAULT.temperature,
    top_p: TopP = DEFAULT.top_p,
    top_k: TopK = DEFAULT.top_k,
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
    """Continue a prompt with a trained model, streaming.

    The model's text goes to standard output, and a line about it to stderr: how many tokens, when
    the first one came, how fast the others did, why it ended, and the seed that gives the same text
    again. It ends where the model ends its document, after --max-tokens, or where the context is
    full.

    \b
      mixtura generate runs/first --prompt "def main():"
      mixtura generate runs/first --prompt "import " --temperature 0 --max-tokens 64
      head -c 200 story.txt | mixtura generate runs/first --prompt - --seed 7 --json
    """
    sampling = sampling_of(temperature, top_p, top_k, seed)
    check_model(model)
    text = _standard_input() if prompt == "-" else prompt
    from mixtura.engine.generate import generate as continue_text
    from mixtura.train import choose_view
    from mixtura.train.opening import open_model

    with choose_view() as view:
        loaded = open_model(model, dtype, progress=view.preparing, wait=verify)
    for remark in loaded.remarks:
        note(remark)
    with checked(loaded.check, verify=verify):
        stream = continue_text(
            loaded.decoder, loaded.tokenizer, text, sampling, max_tokens, context, kv
        )
        (listen if as_json else show)(loaded.check.watch(stream))
        if stream.result.finish == "interrupted":
            loaded.check.stop()
    if as_json:
        print(json.dumps({"prompt": text, **as_data(stream.result), **sampling.model_dump()}))
    else:
        note(f"{summary(stream.result)}, seed {sampling.seed}")
    if stream.result.finish == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input: byte {error.start} is no UTF-8 text ({error.reason}); "
            "convert it, as with iconv -t utf-8"
        ) from error
