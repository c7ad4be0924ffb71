"""The command `mixtura`: its list of commands, and the end of every error."""

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

# Each is a function, or a group of commands, in the module of its name.
COMMANDS = ("demo", "train", "generate", "chat", "report", "inspect", "convert", "pack", "trace")
GROUPS = ("bench", "models")


def app(names: Sequence[str] = (*COMMANDS, *GROUPS)) -> typer.Typer:
    """The command line with these commands; only their modules are imported."""
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
    """The function of a command."""
    return getattr(import_module(f"mixtura.cli.{name}"), name)


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """The requested command only: importing all of them takes a fifth of a second.

    All commands where none is requested, for help, and for a shell that completes.
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
    version: Annotated[  # noqa: ARG001, its callback has done it
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train sparse Mixture-of-Experts models, talk to them, and look inside.

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
    output is one JSON object. A mistake of yours is one line on stderr and exit status 2.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line of this process, and exit."""
    open_closed_streams()
    status = run(sys.argv[1:])
    # CPython ends `python -m mixtura` by SIGINT, whatever the status, after a Ctrl-C inside code
    # that was executed from a string, even if it was caught. Dataclasses and namedtuples, and so
    # lazy imports, execute such code. Another string that is executed clears this state.
    exec("")
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command, print an error that a user can mend, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal lacks is replaced, not an error.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with without_collection():
            # It imports the commands' modules.
            built = app(_needed(arguments))
        status = built(list(arguments), prog_name="mixtura", standalone_mode=False)
        # A full disk behind standard output shows here.
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
