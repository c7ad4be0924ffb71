"""`mixtura convert`: writes a model in another checkpoint layout."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mixtura.cli.answers import note
from mixtura.cli.arguments import AsJson, Model, check_model
from mixtura.cli.verification import Verify
from mixtura.errors import ConfigError

if TYPE_CHECKING:
    from mixtura.checkpoints.conversion import Converted
    from mixtura.checkpoints.gguf_conversion import ConvertedToGGUF

KindName = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
_SHARD_GB = 5.0
_LEAST_GB, _MOST_GB = 0.001, 1e6


def _shard_size(given: float) -> float:
    # A comparison with NaN is false, so NaN is refused too.
    if not _LEAST_GB <= given <= _MOST_GB:
        raise typer.BadParameter(f"{given} must lie in {_LEAST_GB}..{_MOST_GB:,.0f}")
    return given


def convert(
    model: Model,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write, or the .gguf file.")
    ],
    to: Annotated[
        Literal["hf", "gguf"],
        typer.Option(help="The layout: hf, a Hugging Face folder, or gguf, llama.cpp's file."),
    ] = "hf",
    family: Annotated[
        str | None,
        typer.Option(
            help="The family to write as, such as mixtral.  [default: the model's own, or the "
            "first that can say what a run computes]"
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="hf: write weights in this.  [default: as they are stored]"),
    ] = None,
    shard_gb: Annotated[
        float,
        typer.Option(
            help="hf: begin another file before one passes this size.", callback=_shard_size
        ),
    ] = _SHARD_GB,
    kind: Annotated[
        KindName | None,
        typer.Option(
            "--type",
            help="gguf: what matrices are stored as.  [default: q8_0, or as a packed model or a "
            "GGUF file has them, where that is q8_0 or q4_0]",
        ),
    ] = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a folder for transformers and vLLM, or as a GGUF file for llama.cpp.

    A folder has the config, the weights and the tokenizer in the family's own layout. It also has a
    digest of each tensor, which Mixtura checks when it loads the folder. A GGUF file has config,
    weights and tokenizer in one file; q8_0 takes about half the bytes of bf16 and is close to the
    original, q4_0 takes about a quarter. If the layout cannot express something that the model
    computes, the error names the config's key, and nothing is written. OUT appears whole or not at
    all.

    \b
      mixtura convert runs/first first-hf --to hf
      mixtura convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2 --dtype bfloat16
      mixtura convert ./Mixtral-8x7B mixtral-bf16 --dtype bfloat16 --shard-gb 2 --json
      mixtura convert runs/first first.gguf --to gguf
      mixtura convert ./OLMoE-1B-7B olmoe.gguf --to gguf --type q4_0
    """
    check_model(model)
    _check_options(to, dtype, shard_gb, kind)
    if to == "gguf":
        written = _to_gguf(model, out, family, kind, verify)
    else:
        written = _to_hf(model, out, family, dtype, shard_gb, verify)
    for remark in written.remarks:
        note(remark)
    if as_json:
        print(json.dumps(written.as_data()))
    else:
        print(written.path)


def _check_options(to: str, dtype: str | None, shard_gb: float, kind: str | None) -> None:
    """Raise ConfigError for an option that applies only to the other layout."""
    if to == "gguf" and dtype is not None:
        raise ConfigError(f"--dtype {dtype} is for --to hf; say what to store with --type")
    if to == "gguf" and shard_gb != _SHARD_GB:
        raise ConfigError(f"--shard-gb {shard_gb:g} is for --to hf; a GGUF file is one file")
    if to == "hf" and kind is not None:
        raise ConfigError(f"--type {kind} is for --to gguf; say what to store with --dtype")


def _to_hf(
    model: str,
    out: Path,
    family: str | None,
    dtype: Literal["float32", "bfloat16", "float16"] | None,
    shard_gb: float,
    verify: bool,
) -> "Converted":
    from mixtura.checkpoints.conversion import convert_model
    from mixtura.train import choose_view

    with choose_view() as view:
        return convert_model(
            model,
            out,
            family=family,
            dtype=dtype,
            shard_bytes=int(shard_gb * 1e9),
            verify=verify,
            progress=partial(view.preparing, f"writing {out}"),
        )


def _to_gguf(
    model: str, out: Path, family: str | None, kind: KindName | None, verify: bool
) -> "ConvertedToGGUF":
    from mixtura.checkpoints.gguf_conversion import convert_to_gguf
    from mixtura.train import choose_view

    with choose_view() as view:
        return convert_to_gguf(
            model,
            out,
            family=family,
            kind=kind,
            verify=verify,
            progress=partial(view.preparing, f"writing {out}"),
        )
