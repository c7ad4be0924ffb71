"""`mixtura pack`: quantises a model into a packed folder."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mixtura.cli.answers import note
from mixtura.cli.arguments import AsJson, Model, check_model
from mixtura.cli.verification import Verify

if TYPE_CHECKING:
    from mixtura.kernels.packed.groups import Bits

_BITS: "dict[str, Bits]" = {"4": 4, "8": 8}
_STORED = "stored"
BitsName = Literal["4", "8"]


def pack(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    bits: Annotated[
        Literal["4", "8", "stored"],
        typer.Option(
            help="Of a weight: 4 (4.5 with its share of a scale), 8 (8.5), or stored: what keeps "
            "the numbers of a GGUF file, tensor by tensor."
        ),
    ] = "4",
    head_bits: Annotated[
        BitsName | None,
        typer.Option(help="Of the head's and the embedding's weights.  [default: as --bits]"),
    ] = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Quantise a model into one small file, which is memory-mapped and so opens at once.

    Weights are rounded to 4 or 8 bits. Each group of 32 weights shares a scale, which minimises an
    error in which large weights count more. Norms, gates and biases are not rounded. Q4_0 and Q8_0
    tensors of a GGUF file are copied exactly if the bits allow it; a line on stderr names the
    tensors that had to be rounded a second time. Every tensor and every expert has a digest, which
    is checked when the model is used. OUT appears whole or not at all. No more than one layer's
    experts are in memory at a time.

    4 bits decode fastest, since the speed of memory limits decoding; 8 bits are closest to the
    original.

    \b
      mixtura pack ./OLMoE-1B-7B olmoe-4bit
      mixtura pack SmolLM2-135M-Instruct.Q8_0.gguf smollm2-8bit --bits 8
      mixtura pack runs/first first-4bit --head-bits 8 --json
      mixtura chat olmoe-4bit
    """
    check_model(model)
    from mixtura.checkpoints.packed_conversion import pack_model
    from mixtura.train import choose_view

    with choose_view() as view:
        packed = pack_model(
            model,
            out,
            None if bits == _STORED else _BITS[bits],
            head_bits=None if head_bits is None else _BITS[head_bits],
            verify=verify,
            progress=partial(view.preparing, f"packing {out}"),
        )
    for remark in packed.remarks:
        note(remark)
    if as_json:
        print(json.dumps(packed.as_data()))
    else:
        share = 8 * packed.bytes / packed.parameters
        note(f"{packed.bytes:,} bytes, {share:.2f} bits a weight")
        print(packed.path)
