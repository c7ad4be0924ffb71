"""`mixtura inspect`: shows a model's shape, parameters and tensors."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtura.cli import completion
from mixtura.cli.arguments import MODEL_HELP, AsJson
from mixtura.cli.startup import without_collection
from mixtura.cli.verification import Verify, note_unchecked
from mixtura.errors import ConfigError
from mixtura.terminal_text import visible_line

if TYPE_CHECKING:
    from mixtura.checkpoints.contents import Inspection


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODEL_HELP} Or a known shape, or a RECIPE.",
            autocompletion=completion.models_and_shapes,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of a recipe; repeatable."),
    ] = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's shape, parameters and stored tensors.

    The output gives the family, the shape, the numbers of all and of active parameters, and every
    stored tensor. A tensor that is missing, unexpected or of a wrong shape is an error that names
    it, as on loading. A published shape, such as mixtral-8x7b, has no stored tensors to show.
    Weights are read only for a packed model, or with --verify.

    Active parameters are counted by two conventions. A counts every weight that one token uses. B
    does not count the input embedding, unless the head uses the same weights.

    For a recipe, given by its file or its name, the output gives the model to be trained, the
    number of tokens of the run, and the bytes of the weights and of the optimizer's state. Keys of
    routing and balancing are checked only by 'mixtura train'.

    \b
      mixtura inspect runs/first
      mixtura inspect ./OLMoE-1B-7B
      mixtura inspect SmolLM2-135M-Instruct.Q4_1.gguf
      mixtura inspect olmoe-4bit
      mixtura inspect deepseek-v3 --json
      mixtura inspect stdlib-bytes --set model.moe.num_experts=64
    """
    from mixtura.checkpoints.inspection import is_recipe

    if is_recipe(model):
        _show_recipe(model, overrides or (), verify=verify, as_json=as_json)
        return
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: {model} is no recipe, so it has no key to set")
    with without_collection():
        from mixtura.checkpoints.inspection import inspect_model

        found = inspect_model(model, verify=verify)
    if verify:
        note_unchecked(found.check.unchecked)
    if as_json:
        print(json.dumps(_data(found)))
    else:
        print("\n".join(map(visible_line, _lines(found))))


def _show_recipe(recipe: str, overrides: Sequence[str], *, verify: bool, as_json: bool) -> None:
    from mixtura.checkpoints.inspection import inspect_recipe

    if verify:
        raise ConfigError(f"--verify: {recipe} is a recipe, and holds no weights to verify")
    with without_collection():
        found = inspect_recipe(recipe, overrides)
    if as_json:
        training = {
            "steps": found.steps,
            "tokens_per_step": found.tokens_per_step,
            "tokens": found.tokens,
            "weight_bytes": found.weight_bytes,
            "optimizer_bytes": found.optimizer_bytes,
        }
        print(json.dumps({**_data(found.model), "router": found.router, "training": training}))
        return
    first, *rest = _lines(found.model)
    lines = [first if found.router is None else f"{first}, router {found.router}", *rest, ""]
    lines += [
        f"tokens      {found.tokens:>18,}  {found.steps:,} steps of {found.tokens_per_step:,}",
        f"weights     {found.weight_bytes:>18,}  bytes, in fp32",
        f"optimizer   {found.optimizer_bytes:>18,}  bytes, AdamW's two moments in fp32",
    ]
    print("\n".join(map(visible_line, lines)))


def _data(found: "Inspection") -> dict[str, Any]:
    shape = found.shape
    return {
        "model": found.model,
        "family": found.family,
        "shape": shape.model_dump(mode="json") if found.config is None else found.config,
        "parameters": _parameters(found),
        "parameters_by_role": dict(found.parameters_by_role),
        "flops_per_token": shape.flops_per_token(0),
        "bytes": found.bytes,
        "quantisation": found.quantisation,
        "tensors": [
            {
                "pattern": group.pattern,
                "shape": list(group.shape),
                "dtype": group.dtype,
                "count": group.count,
                "bytes": group.bytes,
            }
            for group in found.groups
        ],
        "left_out": dict(found.left_out),
        "digests": found.check.claims,
        "unchecked": list(found.check.unchecked),
        "verified": found.verified,
    }


def _parameters(found: "Inspection") -> dict[str, int]:
    shape = found.shape
    return {
        "total": shape.total_parameters(),
        "active_A": shape.active_parameters("A"),
        "active_B": shape.active_parameters("B"),
    }


def _lines(found: "Inspection") -> list[str]:
    counts, shape = _parameters(found), found.shape
    lines = [f"{found.model}: {found.family}, {_described(found)}", ""]
    lines += [
        f"parameters  {counts['total']:>18,}",
        f"  active, A {counts['active_A']:>18,}  every weight that one token uses",
        f"  active, B {counts['active_B']:>18,}  without an untied input embedding",
    ]
    lines += [f"  {role:<9} {size:>19,}" for role, size in found.parameters_by_role.items()]
    lines.append(
        f"FLOPs       {shape.flops_per_token(0):>18,}  a token, without attention's scores"
    )
    if found.groups:
        tensors = sum(group.count for group in found.groups)
        method = f", quantised by {found.quantisation}" if found.quantisation else ""
        lines += ["", f"{tensors:,} tensors, {found.bytes:,} bytes{method}"]
        lines += [
            f"  {group.count:>6,} x {group.dtype:<8} {list(group.shape)!s:<20} {group.pattern}"
            for group in found.groups
        ]
    if found.left_out:
        from mixtura.checkpoints.expected_tensors import described

        lines += described(found.left_out)
    if found.verified:
        lines.append(f"as it was written, by {found.check.claims:,} digests")
    elif found.check.claims:
        lines.append(f"{found.check.claims:,} digests, which loading checks")
    return lines


def _described(found: "Inspection") -> str:
    from mixtura.shapes import DecoderShape

    shape = found.shape
    if not isinstance(shape, DecoderShape):
        return f"width {shape.width}, vocabulary {shape.vocabulary}"
    heads = shape.attention
    words = [
        f"{shape.layers} layers of width {shape.width}",
        f"{heads.heads} heads",
        *(
            [f"{shape.recurrence.kind} in {len(shape.recurrence.layers)} layers"]
            if shape.recurrence is not None
            else []
        ),
        f"vocabulary {shape.vocabulary}",
        f"context {shape.context:,}",
    ]
    moes = shape.moe_shapes
    if moes:
        first = next(iter(moes.values()))
        experts = f"{first.num_experts} experts of {first.expert_width}, top-{first.top_k}"
        words.append(f"{experts}, in {len(moes)} of {shape.layers} layers")
    return ", ".join(words)
