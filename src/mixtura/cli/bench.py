"""`mixtura bench`: measures a model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mixtura.cli.answers import note
from mixtura.cli.arguments import AsJson, Model, check_model
from mixtura.cli.bench_eval import evaluate
from mixtura.cli.verification import Verify, note_unchecked
from mixtura.errors import ConfigError

if TYPE_CHECKING:
    from mixtura.bench import Quality
    from mixtura.bench.quality import Precision
    from mixtura.kernels.packed.groups import Bits

_PRECISIONS: "dict[str, Precision]" = {"16": 16, "8": 8, "4": 4}
_BITS: "dict[str, Bits]" = {"4": 4, "8": 8}

bench = typer.Typer(
    help="Measure a model: what quantisation costs it, and what it can do.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@bench.callback()
def _bench() -> None:
    """Measure a model: what quantisation costs it, and what it can do."""


bench.command("eval")(evaluate)


@bench.command()
def quality(
    model: Model,
    text: Annotated[
        Path | None,
        typer.Option(
            help="A text file, or a folder of them.  [default: a run's own held-out text, else "
            "Python's standard library]"
        ),
    ] = None,
    bits: Annotated[
        str, typer.Option(metavar="N,N,...", help="Some of 16, 8 and 4; 16 is always measured.")
    ] = "16,8,4",
    tokens: Annotated[int, typer.Option(min=64, help="Read about so many.")] = 16384,
    length: Annotated[
        int | None,
        typer.Option(min=2, help="Of one window.  [default: 512, or the model's context]"),
    ] = None,
    head_bits: Annotated[
        Literal["4", "8"] | None,
        typer.Option(help="Of the head and the embedding.  [default: as the rest]"),
    ] = None,
    peer: Annotated[
        bool,
        typer.Option("--peer", help="Round the same weights by llama.cpp's rule too."),
    ] = False,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity and bits per byte on real text with weights of 16, 8 and 4 bits.

    The model is packed into a temporary folder, and every version reads the same windows of text.
    A row 'weights alone' measures the unpacked model with rounded weights. The rows 'prefill' and
    'decode' measure the packed model, once in the arithmetic with which it reads a prompt, and once
    in the arithmetic with which it generates tokens.

    \b
      mixtura bench quality runs/first
      mixtura bench quality SmolLM2-135M-Instruct.Q4_1.gguf --tokens 65536 --peer
      mixtura bench quality ./OLMoE-1B-7B --text corpus --bits 16,4 --json
    """
    chosen = _precisions(bits)
    check_model(model)
    from mixtura.bench import QualityOptions, bench_quality
    from mixtura.train import choose_view

    with choose_view() as view:
        of_head = None if head_bits is None else _BITS[head_bits]
        options = QualityOptions(chosen, text, tokens, length, of_head, peer)
        found = bench_quality(model, options, progress=view.preparing, verify=verify)
    if verify:
        note_unchecked(found.unchecked)
    _show(found)
    if as_json:
        print(json.dumps(found.as_data()))


def _precisions(bits: str) -> "tuple[Precision, ...]":
    given = [one.strip() for one in bits.split(",")]
    for one in given:
        if one not in _PRECISIONS:
            raise ConfigError(f"--bits {one!r} must be some of {', '.join(_PRECISIONS)}, as in 8,4")
    return tuple(_PRECISIONS[one] for one in given)


def _show(found: "Quality") -> None:
    note(
        f"{found.model}: {found.windows} windows of {found.length} tokens, {found.text}; "
        f"{found.predicted:,} tokens are predicted"
    )
    wide = max(len(row.name) for row in found.rows)
    print(f"{'':<{wide}}  perplexity   to 16 bits  bits/byte        MB")
    for row in found.rows:
        print(
            f"{row.name:<{wide}}  {row.perplexity:10.4f}  {row.ratio - 1:+10.3%}  "
            f"{row.bits_per_byte:9.4f}  {row.bytes / 1e6:8.1f}"
        )
