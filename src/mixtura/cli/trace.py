"""`mixtura trace`: writes the experts of each token to a Parquet file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtura.cli.answers import note, plural
from mixtura.cli.arguments import AsJson, DType, Model, check_model
from mixtura.cli.opened_model import opened
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
    """Record the experts of each token of a text, in every MoE layer.

    Give either --text or --prompt. If --text is a folder, the domain of a file is the name of the
    sub-folder of --text in which the file is. If --text is one file, its name is the domain. A text
    that is longer than the model's context is cut into parts, and each part is a new sequence.

    The Parquet file has one row per token. A row has the token's id, position, sequence and domain,
    and for each layer the experts, in the order of choice, and their weights. DuckDB, pandas and
    Polars can read the file. The Python module mixtura.trace reads it too, and can make a model use
    the recorded experts again. 'docs/traces.md' lists the columns. After Ctrl-C no incomplete file
    is left.

    \b
      mixtura trace runs/first --text corpus --out first.parquet
      mixtura trace runs/first --prompt "def main():" --out one.parquet --all-probabilities
      mixtura trace runs/first --text a.md --layers 0,5 --max-tokens 9000 --out few.parquet --json
    """
    _check_text(text, prompt)
    numbers = _numbers(layers)
    check_model(model)
    from mixtura.train import choose_view

    loaded = opened(model, dtype, verify=verify)
    if verify:
        note_unchecked(loaded.opened.check.unchecked)
    with choose_view() as view:
        traced = loaded.trace(
            _texts(text, prompt),
            out,
            layers=numbers,
            all_probabilities=all_probabilities,
            max_tokens=max_tokens,
            progress=view.preparing,
        )
    for skipped in traced.skipped:
        note(f"left out {skipped.name}: {skipped.reason}")
    per_token = traced.bytes / traced.tokens
    if as_json:
        facts = {
            "trace": str(out),
            "model": loaded.opened.title,
            "tokens": traced.tokens,
            "sequences": traced.sequences,
            "layers": list(traced.layers),
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
        f"{plural(len(traced.layers), 'layer')}, {plural(len(traced.domains), 'domain')}, "
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
