"""`mixtura demo`: compares an MoE with its dense twin on the text of Python's library."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mixtura.cli.arguments import AsJson
from mixtura.cli.failures import INTERRUPTED


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write.  [default: runs/demo, or the next free number]"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimizer steps of each, however long; left out: what fits."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of the demo's twins.yaml, as in moe.moe.num_experts=16; repeatable.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the demo that stopped in --out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a small MoE and its dense twin on Python's own standard library, and compare.

    Both models have the same active compute per token and read the same tokens in the same order.
    Their training steps alternate. The demo takes at most six minutes, works offline, and ends with
    a table, some generated code, and a report for a browser. If other programs slow the machine
    down, both models take fewer steps, and the last line says how many steps were cut. --resume
    continues an interrupted demo with the number of steps that was planned when it stopped.

    \b
      mixtura demo
      mixtura demo --steps 400 --out runs/short --json
      mixtura demo --set moe.moe.balance.loss=0 --set moe.moe.balance.bias_rate=0
    """
    from mixtura.demo import free_folder, run_demo
    from mixtura.errors import ConfigError
    from mixtura.train import choose_view

    if resume and out is None:
        raise ConfigError("--resume needs --out, the folder of the demo that stopped")
    folder = out or free_folder(Path("runs") / "demo")
    outcome = run_demo(
        folder, view=choose_view(), resume=resume, steps=steps, overrides=overrides or ()
    )
    if outcome is None:
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print(json.dumps(outcome.tree()))
        return
    from rich.console import Console

    console = Console()
    console.print(outcome.table())
    console.print(
        f"\nThe MoE's held-out bits per byte lie {outcome.gain:.1%} below its dense twin's, at "
        f"{outcome.speed_ratio:.2f} of its speed.\n\nThe MoE writes:\n"
    )
    console.print(outcome.sample, markup=False, highlight=False)
    console.print(f"\nreport: {outcome.report}", markup=False, highlight=False)
    console.print(f"next:   mixtura chat {folder / 'moe'}", markup=False, highlight=False)
    if outcome.cut is not None:
        console.print(outcome.cut, markup=False, highlight=False, soft_wrap=True)
