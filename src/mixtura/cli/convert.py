"""`mixtura convert`: a model in another layout."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixtura.cli.answers import note
from mixtura.cli.arguments import AsJson, DType, Model, check_model


def convert(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    to: Annotated[  # noqa: ARG001, there is one
        Literal["hf"], typer.Option(help="The layout: hf, a Hugging Face folder.")
    ] = "hf",
    family: Annotated[
        str | None,
        typer.Option(
            help="The family to write as, such as mixtral.  [default: the model's own, or the "
            "first that can say what a run computes]"
        ),
    ] = None,
    dtype: DType = None,
    shard_gb: Annotated[
        float, typer.Option(min=0.001, help="Begin another file before one passes this size.")
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Write a model as a folder that transformers, vLLM and llama.cpp's converter load.

    Config, weights and tokenizer in the family's own layout, and a digest for each expert, which
    Mixtura checks when it loads them again. Where a family has no words for something that the
    model does, the key is named and nothing is written. OUT appears whole or not at all.

    \b
      mixtura convert runs/first first-hf --to hf
      mixtura convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2 --dtype bfloat16
      mixtura convert ./Mixtral-8x7B mixtral-bf16 --dtype bfloat16 --shard-gb 2 --json
    """
    check_model(model)
    from mixtura.train import choose_view
    from mixtura.train.conversion import convert_model

    with choose_view() as view:
        saved = convert_model(
            model,
            out,
            family=family,
            dtype=dtype,
            shard_bytes=int(shard_gb * 1e9),
            progress=partial(view.preparing, f"writing {out}"),
        )
    for remark in saved.remarks:
        note(remark)
    if as_json:
        print(json.dumps(saved.as_data()))
    else:
        print(saved.path)
