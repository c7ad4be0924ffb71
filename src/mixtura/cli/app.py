"""The command `mixtura`: the list of its subcommands, and the handling of every error."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from mixtura.cli.failures import INTERRUPTED, mistake, status_of
from mixtura.cli.startup import without_collection
from mixtura.cli.streams import open_closed_streams
from mixtura.errors import MixturaError, memory_ran_out

# Each command is a function, and each group is a `typer.Typer`. Both are defined in the module of
# `cli/` that has the same name.
COMMANDS = ("demo", "train", "generate", "chat", "report", "inspect", "convert", "pack", "trace")
GROUPS = ("bench", "models")


def app(names: Sequence[str] = (*COMMANDS, *GROUPS)) -> typer.Typer:
    """Build the Typer application with the commands `names`; no other command is imported."""
    built = typer.Typer(
        # Plain help wraps well at any width, keeps the line breaks of examples, and has no colours.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    built.callback(invoke_without_command=True)(mixtura)
    for name in COMMANDS:
        if name in names:
            built.command(name)(command(name))
    for name in GROUPS:
        if name in names:
            built.add_typer(getattr(import_module(f"mixtura.cli.{name}"), name), name=name)
    return built


def command(name: str) -> Callable[..., Any]:
    """Import the module of the command `name`, and return the function that runs it."""
    return getattr(import_module(f"mixtura.cli.{name}"), name)


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """Return the commands to import: only the requested one, since importing all takes 0.2 s.

    Help and shell completion need all commands; `--version` needs none.
    """
    known = (*COMMANDS, *GROUPS)
    if not arguments or "_MIXTURA_COMPLETE" in os.environ:
        return known
    if arguments[0] == "--version":
        return ()
    return arguments[:1] if arguments[0] in known else known


def _show_version(requested: bool) -> None:
    if requested:
        from mixtura import __version__

        print(f"mixtura {__version__}")
        raise typer.Exit


def mixtura(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001, the option's callback prints the version
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train sparse Mixture-of-Experts models, talk to them, and inspect them.

    \b
      mixtura demo
      mixtura train recipes/stdlib-bytes.yaml --out runs/first
      mixtura generate runs/first --prompt "def main():"
      mixtura chat runs/first
      mixtura models pull smollm2
      mixtura chat smollm2
      mixtura report runs/first
      mixtura inspect runs/first
      mixtura convert runs/first first-hf --to hf
      mixtura pack runs/first first-4bit
      mixtura bench quality runs/first
      mixtura bench eval runs/first
      mixtura trace runs/first --text corpus --out first.parquet

    'mixtura COMMAND --help' explains a command, with examples. With --json the last line of the
    output is one JSON object. A mistake in the input gives one line on stderr and exit status 2.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command with this process's arguments, and exit."""
    open_closed_streams()
    status = run(sys.argv[1:])
    # If Ctrl-C interrupts an `exec` of a string, as used by the definition of a dataclass or a
    # namedtuple, CPython later ends `python -m mixtura` by SIGINT, even if KeyboardInterrupt was
    # caught. Another `exec` clears this state, so that the process ends with `status`.
    exec("")
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command, print an error that the user can correct, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the stream's encoding lacks is printed as "?", and raises no error.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with without_collection():
            # `app` imports the modules of the commands, so it runs in this block too.
            built = app(_needed(arguments))
        status = built(list(arguments), prog_name="mixtura", standalone_mode=False)
        # If standard output is a file on a full disk, this flush raises OSError.
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.TyperException as error:
        named = [name for name in arguments[:1] if name in (*COMMANDS, *GROUPS)]
        help_command = " ".join(["mixtura", *named, "--help"])
        return mistake(f"{error.format_message().rstrip('.')}; see '{help_command}'")
    except (MixturaError, OSError) as error:
        return status_of(error)
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        return mistake(f"memory ran out ({error}); choose a smaller model, batch or context")
    return status or 0
