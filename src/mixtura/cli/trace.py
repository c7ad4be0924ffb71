"""`mixtura trace`: which expert did what, token by token."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtura.cli.answers import note, plural
from mixtura.cli.arguments import AsJson, DType, Model, check_model
from mixtura.cli.opening import opened
from mixtura.cli.verification import Verify, note_unchecked
from mixtura.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mixtura.tracing.text_trace import Texts


def trace(
    model: Model,
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    text: Annotated[
        Path | None,
        typer.Option(help="A text file, or a folder whose sub-folders are domains."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The text itself, of no domain.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Of these MoE layers alone.  [default: all of them]"),
    ] = None,
    all_probabilities: Annotated[
        bool,
        typer.Option(
            "--all-probabilities",
            help="Keep the probability of every expert too, at 2 bytes each.",
        ),
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many tokens.  [default: read all]")
    ] = None,
    dtype: DType = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Write down which experts each token of a text went to, in every MoE layer.

    Give either --text or --prompt. A file below a folder belongs to the domain that its first
    sub-folder names; a file by itself is a domain of its own. What is longer than the model's
    context is read in parts, each a sequence that begins anew.

    The file is Parquet: one row a token, with its id, position, sequence and domain, and for each
    layer the experts in the order of choice and their weights. DuckDB, pandas and Polars read it,
    and so does mixtura.trace, which also replays it into a model. 'docs/traces.md' lists the
    columns. Ctrl-C leaves no half file.

    \b
      mixtura trace runs/first --text corpus --out first.parquet
      mixtura trace runs/first --prompt "def main():" --out one.parquet --all-probabilities
      mixtura trace runs/first --text a.md --layers 0,5 --max-tokens 9000 --out few.parquet --json
    """
    _check_text(text, prompt)
    numbers = _numbers(layers)
    check_model(model)
    from mixtura.engine.step_routing import routing_for
    from mixtura.tracing.model_trace import trace_meta
    from mixtura.tracing.text_trace import digest_of, trace_texts
    from mixtura.train import choose_view

    loaded = opened(model, dtype, verify=verify)
    if verify:
        note_unchecked(loaded.check.unchecked)
    meta = trace_meta(
        loaded.decoder,
        loaded.title,
        numbers,
        "float16" if all_probabilities else None,
        type(loaded.tokenizer).__name__,
        digest_of(loaded.tokenizer),
    )
    with choose_view() as view:
        traced = trace_texts(
            loaded.decoder,
            loaded.tokenizer,
            _texts(text, prompt),
            out,
            meta,
            max_tokens,
            view.preparing,
            loaded.check,
            routing_for(loaded.decoder, meta),
        )
    for skipped in traced.skipped:
        note(f"left out {skipped.name}: {skipped.reason}")
    per_token = traced.bytes / traced.tokens
    if as_json:
        facts = {
            "trace": str(out),
            "model": meta.model,
            "tokens": traced.tokens,
            "sequences": traced.sequences,
            "layers": meta.numbers,
            "domains": traced.domains,
            "bytes": traced.bytes,
            "bytes_per_token": per_token,
            "seconds": traced.seconds,
            "skipped": {skipped.name: skipped.reason for skipped in traced.skipped},
        }
        print(json.dumps(facts))
        return
    print(
        f"{out}: {plural(traced.tokens, 'token')}, {plural(traced.sequences, 'sequence')}, "
        f"{plural(len(meta.layers), 'layer')}, {plural(len(traced.domains), 'domain')}, "
        f"{per_token:.0f} bytes a token"
    )


def _check_text(text: Path | None, prompt: str | None) -> None:
    if (text is None) == (prompt is None):
        given = "neither was" if text is None else "both were"
        raise ConfigError(f"--text or --prompt says what to read, and {given} given; give one")
    if text is not None and not text.exists():
        raise DataError(f"{text}: no such file or folder; --text takes a text file or a folder")


def _numbers(layers: str | None) -> list[int] | None:
    if layers is None:
        return None
    try:
        return [int(number) for number in layers.split(",")]
    except ValueError:
        raise ConfigError(
            f"--layers {layers}: expected numbers with commas between them, as in 0,5"
        ) from None


def _texts(text: Path | None, prompt: str | None) -> "Texts":
    from mixtura.data import Document, TextSource
    from mixtura.tracing.text_trace import Texts

    if text is None:
        assert prompt is not None, "checked before"
        return Texts([Document("--prompt", "", prompt)], len(prompt))
    source = TextSource(kind="text", paths=(str(text),))
    return Texts(source.read(), source.size())
